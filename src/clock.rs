//! The one place that reads the clock, and the alarm clock of the tasks that live as long as the
//! process.
//!
//! Rules take `now` as an argument; doors and sessions ask here, so that a paused tokio clock in a
//! test moves everything at once (but an [`Alarm`], which no such test has).

use std::time::{Duration, Instant};

/// The present moment, on tokio's clock (which a test may pause).
#[must_use]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Time since 1970-01-01 in UTC; zero for a clock that is before.
#[must_use]
pub fn since_epoch() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// Sleeps through the reactor, where the system has timers that are files (Linux).
///
/// A pending tokio timer is paid for by everybody: each time the runtime has nothing to do it looks
/// at the clock once more and the kernel sets a timer of its own for the wait, twice a small query.
#[derive(Debug)]
pub struct Alarm {
    #[cfg(target_os = "linux")]
    timer: Option<tokio::net::unix::pipe::Receiver>,
}

impl Alarm {
    /// Must be called within the runtime. If the system gives no timer, it sleeps as others do.
    #[must_use]
    pub fn new() -> Alarm {
        Alarm {
            #[cfg(target_os = "linux")]
            timer: file::timer().ok(),
        }
    }

    /// Waits so long. Cancel safe.
    pub async fn after(&self, wait: Duration) {
        #[cfg(target_os = "linux")]
        if let Some(timer) = &self.timer
            && file::wait(timer, wait).await.is_ok()
        {
            return;
        }
        tokio::time::sleep(wait).await;
    }
}

impl Default for Alarm {
    fn default() -> Self {
        Alarm::new()
    }
}

/// timerfd_create(2).
#[cfg(target_os = "linux")]
mod file {
    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
    use std::io;
    use std::time::Duration;
    use tokio::net::unix::pipe::Receiver;

    /// Not a pipe, but tokio treats any file that can be polled and read the same, and this is its
    /// one door for such a file that trusts the caller with nothing but the file.
    pub(super) fn timer() -> io::Result<Receiver> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Receiver::from_file_unchecked(timer.into())
    }

    pub(super) async fn wait(timer: &Receiver, wait: Duration) -> io::Result<()> {
        // Zero would disarm it.
        let wait = wait.max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        // Forgets an earlier time that has come, so what is read below is this one's.
        rustix::time::timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
        loop {
            timer.readable().await?;
            match timer.try_read(&mut [0; 8]) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_rings_in_time_also_after_one_that_was_not_waited_for() {
        let alarm = Alarm::new();
        let started = now();
        alarm.after(Duration::from_millis(2)).await;
        assert!(now() - started >= Duration::from_millis(2));
        for given_up in [Duration::ZERO, Duration::from_secs(3600)] {
            tokio::select! {
                biased;
                () = alarm.after(given_up) => {}
                () = tokio::task::yield_now() => {}
            }
            let started = now();
            alarm.after(Duration::from_millis(2)).await;
            assert!(now() - started >= Duration::from_millis(2), "an earlier ring is not this one's");
        }
    }
}
