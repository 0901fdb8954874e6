//! Logs and progress on stderr: bars on a terminal, and periodic lines elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::progress::Progress;

/// Interval between progress lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Shortest time from which a rate is computed.
const LEAST_MEASURED: Duration = Duration::from_millis(200);

fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

/// Prefix of each line.
static LABEL: OnceLock<String> = OnceLock::new();

/// Whether this process logs only warnings, as another logs the information.
static ONLY_WARNINGS: AtomicBool = AtomicBool::new(false);

/// Prefixes each further line with the rank, and restricts information in the log to rank 0. Output of `--log
/// debug` is not restricted.
#[cfg(feature = "torch")]
pub(super) fn speak_as_rank(rank: usize) {
    LABEL.get_or_init(|| format!("rank {rank}: "));
    ONLY_WARNINGS.store(rank > 0, Ordering::Relaxed);
}

/// Writes a line to stderr without disturbing the bars.
pub(super) fn say(line: &str) {
    let label = LABEL.get().map_or("", String::as_str);
    bars().suspend(|| {
        // Errors are ignored, as stderr is gone. A single write, so that processes do not mix lines.
        let _ = std::io::stderr().write_all(format!("{label}{line}\n").as_bytes());
    });
}

/// Formats the local time at which something ends that takes this long: `at 17:40`, with the date if on another day.
#[cfg(feature = "torch")]
pub(super) fn end_of_day(left: Duration) -> String {
    end_after(chrono::Local::now().fixed_offset(), left)
}

#[cfg(feature = "torch")]
fn end_after(now: chrono::DateTime<chrono::FixedOffset>, left: Duration) -> String {
    let end = chrono::TimeDelta::from_std(left).ok().and_then(|left| now.checked_add_signed(left));
    match end {
        None => "later than any calendar".to_owned(),
        Some(end) if end.date_naive() == now.date_naive() => end.format("at %H:%M").to_string(),
        Some(end) => end.format("on %Y-%m-%d at %H:%M").to_string(),
    }
}

/// Suggests the next command.
pub(super) fn say_next(command: &str) {
    say(&format!("next: {command}"));
}

/// Sends logs to stderr.
pub(super) fn start_logs(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter}"))?;
    let is_terminal = std::io::stderr().is_terminal();
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(is_terminal)
        .with_writer(AboveBars);
    // A person at a terminal sees the time of each line.
    if is_terminal {
        logs.without_time().init()
    } else {
        logs.init()
    }
    Ok(())
}

/// Writer of log lines above the bars.
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

/// Bar with a message, or lines without a terminal.
pub(super) struct Meter {
    bar: Option<ProgressBar>,
    stage: String,
    total: u64,
    done: u64,
    /// Items done before this call.
    before: u64,
    started: Instant,
    last_line: Instant,
}

impl Meter {
    /// Starts to show a stage of `total` items.
    pub(super) fn new(stage: &str, total: u64, done: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            // Not indicatif's rate, which would count items from before.
            let style =
                ProgressStyle::with_template("{prefix:>8} [{bar:20}] {human_pos}/{human_len}{wide_msg}");
            let bar = bars().add(ProgressBar::new(total));
            bar.set_style(style.expect("the template is fixed").progress_chars("=> "));
            bar.set_prefix(stage.to_owned());
            bar.set_position(done);
            bar
        });
        let now = Instant::now();
        Self { bar, stage: stage.to_owned(), total, done, before: done, started: now, last_line: now }
    }

    /// Counts items and shows a current message.
    pub(super) fn advance(&mut self, items: u64, message: &str) {
        self.done += items;
        if let Some(bar) = &self.bar {
            bar.inc(items);
            bar.set_message(self.message(message));
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            self.line(message);
        }
    }

    /// Excludes time spent on something else from rate and remaining time.
    #[cfg(feature = "torch")]
    pub(super) fn paused(&mut self, pause: Duration) {
        // The pause may have begun before the meter.
        self.started = (self.started + pause).min(Instant::now());
    }

    fn line(&self, message: &str) {
        let share = 100.0 * self.done as f64 / self.total.max(1) as f64;
        let Self { stage, done, total, .. } = self;
        say(&format!("{stage}: {done}/{total} ({share:.0} %){}", self.message(message)));
    }

    /// Formats the pace and the current message.
    fn message(&self, message: &str) -> String {
        let pace = self.pace().map(|(rate, left)| format!(" {rate:.1}/s, {} left", HumanDuration(left)));
        let comma = if pace.is_some() { "," } else { "" };
        let message = if message.is_empty() { String::new() } else { format!("{comma} {message}") };
        pace.unwrap_or_default() + &message
    }

    /// Returns items per second and the remaining time, once measurable.
    fn pace(&self) -> Option<(f64, Duration)> {
        let elapsed = self.started.elapsed();
        let done = self.done - self.before;
        if done == 0 || elapsed < LEAST_MEASURED {
            return None;
        }
        let rate = done as f64 / elapsed.as_secs_f64();
        let left = self.total.saturating_sub(self.done) as f64 / rate;
        Some((rate, Duration::from_secs_f64(left.min(1e9))))
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Terminal display of a job's stages, one after the other.
#[derive(Default)]
pub(super) struct Terminal<'a> {
    /// Name shown for every stage; `None` to show each stage's own.
    stage: Option<&'static str>,
    /// Flag that is set when the job should stop.
    stop: Option<&'a AtomicBool>,
    /// Whether to show nothing, because rank 0 shows the job.
    is_quiet: bool,
    meter: Mutex<Option<Meter>>,
}

#[cfg(feature = "torch")]
impl<'a> Terminal<'a> {
    /// Creates the display of one of several processes; only the first shows anything.
    pub(super) fn of_rank(is_first: bool) -> Self {
        Self { is_quiet: !is_first, ..Self::default() }
    }

    /// Creates the display of work beside a run's steps, which ends when `stop` is set.
    pub(super) fn beside_steps(stage: &'static str, stop: &'a AtomicBool, is_first: bool) -> Self {
        Self { stage: Some(stage), stop: Some(stop), ..Self::of_rank(is_first) }
    }
}

impl Terminal<'_> {
    fn meter(&self) -> MutexGuard<'_, Option<Meter>> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Terminal<'_> {
    fn note(&self, line: &str) {
        if !self.is_quiet {
            say(line);
        }
    }

    fn begin(&self, stage: &str, total: u64) {
        if !self.is_quiet {
            *self.meter() = Some(Meter::new(self.stage.unwrap_or(stage), total, 0));
        }
    }

    fn advance(&self, items: u64) {
        if let Some(meter) = self.meter().as_mut() {
            meter.advance(items, "");
        }
    }

    fn finish(&self) {
        self.meter().take();
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "torch")]
    #[test]
    fn an_end_on_another_day_has_its_date() {
        let now = chrono::DateTime::parse_from_rfc3339("2026-11-29T21:30:00+01:00").expect("a time");
        let after = |minutes: u64| end_after(now, Duration::from_secs(60 * minutes));
        assert_eq!(after(70), "at 22:40");
        assert_eq!(after(150), "on 2026-11-30 at 00:00");
        assert_eq!(after(60 * 24 * 33 + 1), "on 2027-01-01 at 21:31");
        assert_eq!(end_after(now, Duration::MAX), "later than any calendar");
    }

    #[test]
    fn a_rate_counts_what_was_done_here_and_is_given_once_it_is_measured() {
        let mut meter = Meter::new("train", 1000, 900);
        assert_eq!((meter.pace(), meter.message("loss 1")), (None, " loss 1".to_owned()));
        meter.advance(50, "");
        assert_eq!(meter.pace(), None, "too early to tell");
        meter.started -= Duration::from_secs(10);
        let (rate, left) = meter.pace().expect("measured");
        assert!((4.9..=5.0).contains(&rate) && (10.0..10.3).contains(&left.as_secs_f64()), "{rate} {left:?}");
        let message = meter.message("loss 1");
        assert!(message.ends_with("/s, 10 seconds left, loss 1"), "{message}");
    }
}
