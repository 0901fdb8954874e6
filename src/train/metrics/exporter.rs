//! Prometheus exporter of the run's numbers, as OpenMetrics over HTTP.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

/// Time limit of a client for its request and for reading the answer.
const CLIENT_TIME: Duration = Duration::from_secs(5);
/// Size limit of a request in bytes; hyper's minimum.
const REQUEST_BYTES: usize = 8 << 10;
/// Clients served at the same time; others wait.
const CLIENTS: usize = 16;

/// Newest value of each number.
#[derive(Debug, Default)]
struct Numbers {
    registry: Registry,
    gauges: BTreeMap<String, Gauge<f64, AtomicU64>>,
}

impl Numbers {
    fn set(&mut self, name: String, value: f64) {
        let Self { registry, gauges } = self;
        let gauge = gauges.entry(name).or_insert_with_key(|name| {
            let gauge = Gauge::default();
            let plain: String =
                name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            registry.register(
                format!("instdisc_{plain}"),
                format!("`{name}` of metrics.jsonl"),
                Gauge::clone(&gauge),
            );
            gauge
        });
        gauge.set(value);
    }
}

/// HTTP server of the numbers, on one thread until the process ends.
#[derive(Debug)]
pub struct Exporter {
    numbers: Arc<Mutex<Numbers>>,
    address: SocketAddr,
}

impl Exporter {
    /// Starts a server at an address such as `0.0.0.0:9400`.
    ///
    /// # Errors
    /// If the address is malformed or taken.
    pub fn listen(address: &str) -> std::io::Result<Self> {
        let addresses: Vec<_> = address.to_socket_addrs()?.collect();
        let listener = TcpListener::bind(addresses.as_slice())?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let numbers = Arc::<Mutex<Numbers>>::default();
        let shown = Arc::clone(&numbers);
        let serve = move || {
            if let Err(error) = runtime.block_on(serve(listener, shown)) {
                tracing::warn!("metrics at http://{address}/metrics ended: {error}");
            }
        };
        std::thread::Builder::new().name("metrics".into()).spawn(serve)?;
        Ok(Self { numbers, address })
    }

    /// Returns the server's address, with the port that was chosen for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets numbers by name.
    pub fn set(&self, values: impl IntoIterator<Item = (String, f64)>) {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        values.into_iter().for_each(|(name, value)| numbers.set(name, value));
    }
}

async fn serve(listener: TcpListener, numbers: Arc<Mutex<Numbers>>) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let turn = Arc::clone(&clients).acquire_owned().await.map_err(std::io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // The client is gone, or this process has reached its limit of open files.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let numbers = Arc::clone(&numbers);
        tokio::spawn(async move {
            let answer =
                service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request, &numbers))));
            let client = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .max_buf_size(REQUEST_BYTES)
                .serve_connection(TokioIo::new(stream), answer);
            // Drop clients that leave or are too slow.
            let _ = tokio::time::timeout(CLIENT_TIME, client).await;
            drop(turn);
        });
    }
}

fn answer<B>(request: &Request<B>, numbers: &Mutex<Numbers>) -> Response<String> {
    let (status, body) = match request.uri().path() {
        "/" | "/metrics" => {
            let mut text = String::new();
            let encoded = encode(&mut text, &numbers.lock().unwrap_or_else(PoisonError::into_inner).registry);
            match encoded {
                Ok(()) => (StatusCode::OK, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        _ => (StatusCode::NOT_FOUND, "the numbers are at /metrics\n".to_owned()),
    };
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Instant;

    use super::*;

    fn get(exporter: &Exporter, path: &str) -> String {
        let mut stream = TcpStream::connect(exporter.address()).expect("it listens");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }

    #[test]
    fn the_newest_numbers_are_served_as_openmetrics() {
        let exporter = Exporter::listen("127.0.0.1:0").expect("a free port");
        exporter.set([("loss".to_owned(), 2.0), ("bank/age_mean".to_owned(), 7.0)]);
        exporter.set([("loss".to_owned(), 1.5)]);
        let answer = get(&exporter, "/metrics");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let body = answer.split_once("\r\n\r\n").expect("a body").1;
        let expected = "# HELP instdisc_loss `loss` of metrics.jsonl.\n# TYPE instdisc_loss gauge\n\
                        instdisc_loss 1.5\n\
                        # HELP instdisc_bank_age_mean `bank/age_mean` of metrics.jsonl.\n\
                        # TYPE instdisc_bank_age_mean gauge\ninstdisc_bank_age_mean 7.0\n# EOF\n";
        assert_eq!(body, expected);
        assert!(get(&exporter, "/other").starts_with("HTTP/1.1 404"));
    }

    #[test]
    fn a_client_that_says_nothing_and_one_that_never_ends_its_request_block_nobody() {
        let exporter = Exporter::listen("127.0.0.1:0").expect("a free port");
        exporter.set([("loss".to_owned(), 2.0)]);
        let silent = TcpStream::connect(exporter.address()).expect("it listens");
        let mut endless = TcpStream::connect(exporter.address()).expect("it listens");
        endless.set_write_timeout(Some(CLIENT_TIME)).expect("set");
        let began = Instant::now();
        // The server closes the connection long before 1 GiB is sent.
        let sent = (0..1 << 14).take_while(|_| endless.write_all(&[b'a'; 1 << 16]).is_ok()).count();
        assert!(sent < 1 << 10, "{sent} times 64 KiB were taken");
        assert!(get(&exporter, "/metrics").contains("instdisc_loss 2.0"));
        assert!(began.elapsed() < CLIENT_TIME, "the silent client was waited for");
        drop(silent);
    }

    #[test]
    fn a_slow_client_is_cut_off() {
        let exporter = Exporter::listen("127.0.0.1:0").expect("a free port");
        let mut slow = TcpStream::connect(exporter.address()).expect("it listens");
        let cut_off = (0..100).any(|_| {
            std::thread::sleep(CLIENT_TIME / 20);
            slow.write_all(b"G").is_err()
        });
        assert!(cut_off, "it could send for {:?}", 5 * CLIENT_TIME);
    }
}
