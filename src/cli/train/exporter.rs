//! `--metrics-listen`: the run's numbers for Prometheus, as OpenMetrics over HTTP.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;

/// Who asks and then says nothing is not waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(5);

/// The newest value of each number.
type Gauges = Arc<Mutex<BTreeMap<String, f64>>>;

/// Answers requests on a thread of its own, until the process ends.
pub(super) struct Exporter {
    gauges: Gauges,
    address: SocketAddr,
}

impl Exporter {
    /// Listens at an address such as `0.0.0.0:9400`.
    pub(super) fn listen(address: &str) -> anyhow::Result<Self> {
        let context = || format!("--metrics-listen {address}");
        let listener = TcpListener::bind(
            address.to_socket_addrs().with_context(context)?.collect::<Vec<_>>().as_slice(),
        );
        let listener = listener.with_context(context)?;
        let address = listener.local_addr().with_context(context)?;
        let gauges = Gauges::default();
        let shown = Arc::clone(&gauges);
        let answer_all = move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away is its own loss.
                let _ = answer(&stream, &shown);
            }
        };
        std::thread::Builder::new().name("metrics".into()).spawn(answer_all).with_context(context)?;
        Ok(Self { gauges, address })
    }

    /// Where it listens; a port of 0 was replaced by a free one.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets numbers by name.
    pub(super) fn set(&self, numbers: impl IntoIterator<Item = (String, f64)>) {
        self.gauges.lock().unwrap_or_else(PoisonError::into_inner).extend(numbers);
    }
}

fn answer(mut stream: &TcpStream, gauges: &Gauges) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = String::new();
    let mut reader = BufReader::new(stream);
    reader.read_line(&mut request)?;
    let found = request.starts_with("GET /metrics ") || request.starts_with("GET / ");
    let body = if found {
        text(&gauges.lock().unwrap_or_else(PoisonError::into_inner))
    } else {
        "the numbers are at /metrics\n".to_owned()
    };
    let status = if found { "200 OK" } else { "404 Not Found" };
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The numbers as OpenMetrics text.
fn text(gauges: &BTreeMap<String, f64>) -> String {
    let mut text = String::new();
    for (name, value) in gauges {
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let _ = writeln!(text, "# TYPE instdisc_{name} gauge\ninstdisc_{name} {value}");
    }
    text + "# EOF\n"
}

#[cfg(test)]
mod tests {
    use std::io::Read;

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
        let expected = "# TYPE instdisc_bank_age_mean gauge\ninstdisc_bank_age_mean 7\n\
                        # TYPE instdisc_loss gauge\ninstdisc_loss 1.5\n# EOF\n";
        assert_eq!(body, expected);
        assert!(get(&exporter, "/other").starts_with("HTTP/1.1 404"));
    }
}
