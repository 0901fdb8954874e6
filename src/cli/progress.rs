//! Logs and progress on stderr: bars where it is a terminal, a line every so often where it is none.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::progress::Progress;

/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

/// What each line begins with.
static LABEL: OnceLock<String> = OnceLock::new();

/// Whether the log's information is left to another process.
static ONLY_WARNINGS: AtomicBool = AtomicBool::new(false);

/// Begins each line from now on with the rank; what the log says for information only rank 0 says. (What is asked for
/// with `--log debug` all say.)
#[cfg(feature = "torch")]
pub(super) fn speak_as_rank(rank: usize) {
    LABEL.get_or_init(|| format!("rank {rank}: "));
    ONLY_WARNINGS.store(rank > 0, Ordering::Relaxed);
}

/// Writes a line to stderr without tearing the bars.
pub(super) fn say(line: &str) {
    let label = LABEL.get().map_or("", String::as_str);
    bars().suspend(|| {
        // There is nobody left to tell when stderr is gone. One write, so that processes do not mix lines.
        let _ = std::io::stderr().write_all(format!("{label}{line}\n").as_bytes());
    });
}

/// Sends logs to stderr.
pub(super) fn start_logs(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(AboveBars)
        .init();
    Ok(())
}

/// Writes log lines above the bars.
struct AboveBars;

struct LineAboveBars {
    line: Vec<u8>,
    is_shown: bool,
}

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = LineAboveBars;

    fn make_writer(&'a self) -> LineAboveBars {
        LineAboveBars { line: Vec::new(), is_shown: true }
    }

    fn make_writer_for(&'a self, about: &tracing::Metadata<'_>) -> LineAboveBars {
        let is_asked_for = LevelFilter::current() > LevelFilter::INFO;
        let is_detail = *about.level() == tracing::Level::INFO && !is_asked_for;
        LineAboveBars { line: Vec::new(), is_shown: !(is_detail && ONLY_WARNINGS.load(Ordering::Relaxed)) }
    }
}

impl Write for LineAboveBars {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.line.extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for LineAboveBars {
    fn drop(&mut self) {
        if self.is_shown {
            say(String::from_utf8_lossy(&self.line).trim_end());
        }
    }
}

/// A bar with a message, or lines in its stead.
pub(super) struct Meter {
    bar: Option<ProgressBar>,
    stage: String,
    total: u64,
    done: u64,
    /// What was done before this call.
    before: u64,
    started: Instant,
    last_line: Instant,
}

impl Meter {
    /// Starts to show a stage of `total` items.
    pub(super) fn new(stage: &str, total: u64, done: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(
                "{prefix:>8} [{bar:30}] {human_pos}/{human_len} {rate} {eta} left {msg}",
            );
            let bar = bars().add(ProgressBar::new(total));
            let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                // A bar that cannot be written to has nobody to tell.
                let _ = write!(out, "{:.1}/s", state.per_sec());
            };
            let style = style.expect("the template is fixed").with_key("rate", rate);
            bar.set_style(style.progress_chars("=> "));
            bar.set_prefix(stage.to_owned());
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Self { bar, stage: stage.to_owned(), total, done, before: done, started: now, last_line: now }
    }

    /// Counts items, with a message of the moment.
    pub(super) fn advance(&mut self, items: u64, message: &str) {
        self.done += items;
        if let Some(bar) = &self.bar {
            bar.inc(items);
            if !message.is_empty() {
                bar.set_message(message.to_owned());
            }
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            self.line(message);
        }
    }

    /// Leaves this time out of rate and time left: something else was done.
    #[cfg(feature = "torch")]
    pub(super) fn paused(&mut self, pause: Duration) {
        self.started += pause;
        if let Some(bar) = &self.bar {
            // Its estimate is of the last steps, so it begins anew.
            bar.reset_eta();
        }
    }

    fn line(&self, message: &str) {
        let rate = (self.done - self.before) as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        let share = 100.0 * self.done as f64 / self.total.max(1) as f64;
        let left = self.total.saturating_sub(self.done) as f64 / rate.max(1e-9);
        let left = indicatif::HumanDuration(Duration::from_secs_f64(left.min(1e9)));
        let Self { stage, done, total, .. } = self;
        let message = if message.is_empty() { String::new() } else { format!(", {message}") };
        say(&format!("{stage}: {done}/{total} ({share:.0} %) {rate:.1}/s, {left} left{message}"));
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Shows the stages of a job one after the other.
#[derive(Default)]
pub(super) struct Terminal {
    meter: Mutex<Option<Meter>>,
}

impl Terminal {
    fn meter(&self) -> MutexGuard<'_, Option<Meter>> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Terminal {
    fn note(&self, line: &str) {
        say(line);
    }

    fn begin(&self, stage: &str, total: u64) {
        *self.meter() = Some(Meter::new(stage, total, 0));
    }

    fn advance(&self, items: u64) {
        if let Some(meter) = self.meter().as_mut() {
            meter.advance(items, "");
        }
    }

    fn finish(&self) {
        self.meter().take();
    }
}
