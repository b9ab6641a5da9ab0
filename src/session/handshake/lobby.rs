//! Connections that have not yet proved who they are: so many at a time, and who has been slow makes room for
//! who comes.
//!
//! A client logs in within milliseconds; who opens connections and says nothing, or a byte a second, fills
//! whatever bound there is. To refuse who comes then would leave the door to those who do not mean to come in.
//! So the one that has let us wait for longest goes, once it has had its time. While nobody has, whoever comes
//! waits in the kernel's queue of connections: a crowd that arrives at once is let in as fast as it can be served.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// What everybody has for each message of a login, however many come: a round trip around the world.
const AT_LEAST: Duration = Duration::from_millis(250);

/// See the module's page.
#[derive(Debug, Default)]
pub struct Lobby {
    guests: Mutex<Guests>,
    left: Notify,
}

/// Those who are here, who has let us wait for longest first.
#[derive(Debug, Default)]
struct Guests {
    next: u64,
    here: BTreeMap<u64, Here>,
    /// Those who wait for us, and not we for them.
    busy: usize,
}

#[derive(Debug)]
struct Here {
    since: Instant,
    go: oneshot::Sender<()>,
}

/// What becomes of somebody who comes.
enum Asked {
    /// In.
    Admitted(u64, oneshot::Receiver<()>),
    /// To wait for the one that is to go then, or for another that leaves.
    Later(Instant),
}

impl Guests {
    fn admit(&mut self, most: usize, now: Instant) -> Asked {
        if self.here.len() + self.busy >= most {
            let Some(oldest) = self.here.first_entry() else { return Asked::Later(now + AT_LEAST) };
            let due = oldest.get().since + AT_LEAST;
            if now < due {
                return Asked::Later(due);
            }
            // Who has just left by itself need not be told.
            let _ = oldest.remove().go.send(());
        }
        let (go, gone) = oneshot::channel();
        Asked::Admitted(self.stand(go, now), gone)
    }

    /// The last place.
    fn stand(&mut self, go: oneshot::Sender<()>, now: Instant) -> u64 {
        self.next += 1;
        self.here.insert(self.next, Here { since: now, go });
        self.next
    }
}

impl Lobby {
    /// Room for one more among so many. Cancel safe.
    pub async fn admit(self: &Arc<Self>, most: usize) -> (Guest, SentAway) {
        loop {
            let asked = self.guests.lock().admit(most, crate::clock::now());
            match asked {
                Asked::Admitted(number, gone) => {
                    return (Guest { lobby: self.clone(), number: number.into() }, SentAway(Some(gone)));
                }
                Asked::Later(due) => tokio::select! {
                    () = self.left.notified() => {}
                    () = tokio::time::sleep_until(due.into()) => {}
                },
            }
        }
    }

    fn leave(&self, number: u64) {
        if self.guests.lock().here.remove(&number).is_some() {
            self.left.notify_one();
        }
    }
}

/// One of them; dropping it leaves.
#[derive(Debug)]
pub struct Guest {
    lobby: Arc<Lobby>,
    number: AtomicU64,
}

/// Tells a guest to go.
#[derive(Debug)]
pub struct SentAway(Option<oneshot::Receiver<()>>);

impl Guest {
    /// Who it is has been proved, or that it is not: no more a guest.
    pub(super) fn stay(&self) {
        self.lobby.leave(self.number.load(Ordering::Relaxed));
    }

    /// It has sent a whole message.
    pub(super) fn go_on(&self) {
        drop(self.wait());
    }

    /// Does something for which it has to wait, and is not sent away meanwhile. Cancel safe if `work` is.
    pub(super) async fn waits_for<T>(&self, work: impl Future<Output = T>) -> T {
        let _waits = self.wait();
        work.await
    }

    fn wait(&self) -> Option<Waits<'_>> {
        let mut guests = self.lobby.guests.lock();
        let here = guests.here.remove(&self.number.load(Ordering::Relaxed))?;
        guests.busy += 1;
        Some(Waits { guest: self, go: Some(here.go) })
    }
}

/// One that waits for us; at the end it is the last of those we wait for.
struct Waits<'a> {
    guest: &'a Guest,
    go: Option<oneshot::Sender<()>>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut guests = self.guest.lobby.guests.lock();
        guests.busy -= 1;
        if let Some(go) = self.go.take() {
            let number = guests.stand(go, crate::clock::now());
            self.guest.number.store(number, Ordering::Relaxed);
        }
    }
}

impl SentAway {
    /// Its time is over, for somebody else. Never, once it stays. Cancel safe.
    pub(super) async fn wait(&mut self) {
        if let Some(gone) = &mut self.0
            && gone.await.is_ok()
        {
            return;
        }
        self.0 = None;
        pending().await
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stay();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant as Virtual, advance, timeout};

    async fn sent_away((_, sent_away): &mut (Guest, SentAway)) -> bool {
        timeout(Duration::ZERO, sent_away.wait()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_been_slow_makes_room() {
        let lobby = Arc::new(Lobby::default());
        let mut first = lobby.admit(2).await;
        advance(AT_LEAST).await;
        let mut second = lobby.admit(2).await;
        let mut third = lobby.admit(2).await;
        assert!(sent_away(&mut first).await && !sent_away(&mut second).await);
        advance(AT_LEAST / 2).await;
        // The second has waited for us, and the third is young: who comes waits until it is not.
        second.0.go_on();
        let asked = Virtual::now();
        let fourth = lobby.admit(2).await;
        assert_eq!(asked.elapsed().as_millis(), AT_LEAST.as_millis() / 2);
        assert!(sent_away(&mut third).await && !sent_away(&mut second).await);
        assert_eq!(lobby.guests.lock().here.len(), 2);
        drop((second, fourth));
        assert_eq!(lobby.guests.lock().here.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_us_is_not_sent_away_for_it() {
        let lobby = Arc::new(Lobby::default());
        let mut first = lobby.admit(1).await;
        let asked = Virtual::now();
        let (done, work) = oneshot::channel();
        let comes = tokio::spawn({
            let lobby = lobby.clone();
            async move { lobby.admit(1).await }
        });
        let works = async {
            assert!(timeout(AT_LEAST * 10, first.0.waits_for(work)).await.is_err());
            let _ = done.send(());
        };
        works.await;
        assert!(!sent_away(&mut first).await && !comes.is_finished());
        // From now on we wait for it.
        comes.await.expect("no panic");
        assert!(sent_away(&mut first).await);
        assert!(asked.elapsed() >= AT_LEAST * 11);
        assert_eq!(lobby.guests.lock().busy, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_stays_is_never_sent_away() {
        let lobby = Arc::new(Lobby::default());
        let mut first = lobby.admit(1).await;
        first.0.stay();
        let mut second = lobby.admit(1).await;
        advance(AT_LEAST).await;
        let third = lobby.admit(1).await;
        assert!(!sent_away(&mut first).await && sent_away(&mut second).await);
        // One that leaves lets in who waits, at once.
        let asked = Virtual::now();
        let waits = tokio::spawn({
            let lobby = lobby.clone();
            async move { lobby.admit(1).await }
        });
        tokio::task::yield_now().await;
        drop(third);
        waits.await.expect("no panic");
        assert_eq!(asked.elapsed(), Duration::ZERO);
    }
}
