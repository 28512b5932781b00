//! Who may launch: bounds the memory of an account's MicroVMs, and keeps launches and deletions of one image
//! apart.
//!
//! A launch *enters* before it reads its image, and is counted from then until its MicroVM is over. A
//! deletion *closes* the image while it stores its intent. Each is one step under one lock, so an image is
//! either found in use or launches nothing more, and no number of launches at once exceeds the quota.

use dormouse_core::{AccountId, ImageArn, MicrovmId};
use dormouse_node::node::Node;
use dormouse_store::{Query, Store, StoreError};
use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Tells which MicroVMs are not over.
pub(crate) trait Alive: Send + Sync + Debug {
    /// Whether this MicroVM runs, sleeps, or is on its way there.
    fn is_live(&self, id: &MicrovmId) -> bool;
}

impl Alive for Node {
    fn is_live(&self, id: &MicrovmId) -> bool {
        Node::is_live(self, id)
    }
}

/// The launches that count.
#[derive(Debug)]
pub(crate) struct Admission {
    alive: Arc<dyn Alive>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    launches: HashMap<MicrovmId, Launch>,
    closed: HashSet<ImageArn>,
}

#[derive(Debug)]
struct Launch {
    account: AccountId,
    image: ImageArn,
    memory_mib: u64,
    /// Its MicroVM has a driver, which knows better than we whether it is over.
    launched: bool,
}

/// A launch under way; it counts no more when this is dropped before [`Entry::launched`].
#[derive(Debug)]
#[must_use]
pub(crate) struct Entry<'a> {
    admission: &'a Admission,
    id: Option<MicrovmId>,
}

/// An image from which nothing is launched while this lives.
#[derive(Debug)]
#[must_use]
pub(crate) struct Closed<'a> {
    admission: &'a Admission,
    image: ImageArn,
}

/// The account's MicroVMs have all the memory that they may have.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OverQuota;

impl Admission {
    /// Counts what is stored: MicroVMs that an earlier daemon launched.
    pub(crate) async fn open(alive: Arc<dyn Alive>, store: &Store) -> Result<Self, StoreError> {
        let admission = Self {
            alive,
            state: Mutex::default(),
        };
        let mut query = Query::default();
        loop {
            let page = store.list::<dormouse_core::microvm::Record>(&query).await?;
            let Some(last) = page.last() else {
                return Ok(admission);
            };
            query.after = Some(last.seq);
            for row in page {
                let vm = row.value;
                if !admission.alive.is_live(&vm.id) {
                    continue;
                }
                let launch = Launch {
                    account: vm.account,
                    image: vm.image,
                    memory_mib: vm.memory_mib.into(),
                    launched: true,
                };
                admission.state().launches.insert(vm.id, launch);
            }
        }
    }

    /// Begins a launch; none when the image is just being deleted.
    pub(crate) fn enter(
        &self,
        id: &MicrovmId,
        account: &AccountId,
        image: &ImageArn,
    ) -> Option<Entry<'_>> {
        let mut state = self.state();
        if state.closed.contains(image) {
            return None;
        }
        let launch = Launch {
            account: account.clone(),
            image: image.clone(),
            memory_mib: 0,
            launched: false,
        };
        state.launches.insert(id.clone(), launch);
        Some(Entry {
            admission: self,
            id: Some(id.clone()),
        })
    }

    /// Keeps launches away from an image; none when one is under way or a MicroVM of it lives.
    pub(crate) fn close(&self, image: &ImageArn) -> Option<Closed<'_>> {
        let mut state = self.state();
        self.forget_ended(&mut state);
        if state.launches.values().any(|launch| launch.image == *image) {
            return None;
        }
        state.closed.insert(image.clone());
        Some(Closed {
            admission: self,
            image: image.clone(),
        })
    }

    /// Whether a launch from this image is under way whose MicroVM may not be stored yet.
    pub(crate) fn is_entering(&self, image: &ImageArn) -> bool {
        let state = self.state();
        let mut launches = state.launches.values();
        launches.any(|launch| launch.image == *image && !launch.launched)
    }

    fn forget_ended(&self, state: &mut State) {
        let launches = &mut state.launches;
        launches.retain(|id, launch| !launch.launched || self.alive.is_live(id));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No section panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry<'_> {
    /// Takes memory for the MicroVM, unless its account's would then have more than `limit_mib`.
    pub(crate) fn claim(&self, memory_mib: u64, limit_mib: u64) -> Result<(), OverQuota> {
        let mut state = self.admission.state();
        self.admission.forget_ended(&mut state);
        let Some(id) = &self.id else { return Ok(()) };
        let Some(account) = state.launches.get(id).map(|own| own.account.clone()) else {
            return Ok(());
        };
        let same = state.launches.values().filter(|l| l.account == account);
        let used: u64 = same.map(|launch| launch.memory_mib).sum();
        if used + memory_mib > limit_mib {
            return Err(OverQuota);
        }
        if let Some(own) = state.launches.get_mut(id) {
            own.memory_mib = memory_mib;
        }
        Ok(())
    }

    /// The MicroVM has its driver: it counts until it is over.
    pub(crate) fn launched(mut self) {
        let Some(id) = self.id.take() else { return };
        if let Some(own) = self.admission.state().launches.get_mut(&id) {
            own.launched = true;
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(id) = &self.id {
            self.admission.state().launches.remove(id);
        }
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.admission.state().closed.remove(&self.image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[derive(Debug, Default)]
    struct Living(Mutex<HashSet<MicrovmId>>);

    impl Alive for Living {
        fn is_live(&self, id: &MicrovmId) -> bool {
            self.0.lock().unwrap().contains(id)
        }
    }

    struct Lab {
        living: Arc<Living>,
        admission: Admission,
    }

    impl Lab {
        async fn new() -> Self {
            let living = Arc::new(Living::default());
            let admission = Admission::open(living.clone(), &Store::memory()).await;
            Self {
                living,
                admission: admission.unwrap(),
            }
        }

        fn launch(&self, account: &str, image: &str, mib: u64) -> Result<MicrovmId, OverQuota> {
            let id = MicrovmId::new(Uuid::new_v4());
            let account = AccountId::parse(account).unwrap();
            let entry = self.admission.enter(&id, &account, &arn(image)).unwrap();
            entry.claim(mib, 2048)?;
            self.living.0.lock().unwrap().insert(id.clone());
            entry.launched();
            Ok(id)
        }

        fn end(&self, id: &MicrovmId) {
            self.living.0.lock().unwrap().remove(id);
        }
    }

    fn arn(name: &str) -> ImageArn {
        let text = format!("arn:aws:lambda:us-east-1:000000000001:microvm-image:{name}");
        ImageArn::parse(&text).unwrap()
    }

    #[tokio::test]
    async fn an_account_has_so_much_memory_and_gets_it_back() {
        const ONE: &str = "000000000001";
        let lab = Lab::new().await;
        let first = lab.launch(ONE, "a", 1024).unwrap();
        lab.launch(ONE, "b", 1024).unwrap();
        assert_eq!(lab.launch(ONE, "b", 512), Err(OverQuota));
        lab.launch("000000000002", "b", 2048).unwrap();
        lab.end(&first);
        lab.launch(ONE, "b", 512).unwrap();
        lab.launch(ONE, "b", 512).unwrap();
        assert_eq!(lab.launch(ONE, "b", 512), Err(OverQuota));
    }

    #[tokio::test]
    async fn launches_at_the_same_moment_do_not_share_the_last_memory() {
        let lab = Lab::new().await;
        let account = AccountId::parse("000000000001").unwrap();
        let ids: Vec<_> = (0..10).map(|_| MicrovmId::new(Uuid::new_v4())).collect();
        let enter = |id| lab.admission.enter(id, &account, &arn("a")).unwrap();
        let entries: Vec<_> = ids.iter().map(enter).collect();
        let claimed = entries.iter().filter(|e| e.claim(512, 2048).is_ok());
        assert_eq!(claimed.count(), 4);
        drop(entries);
        lab.launch("000000000001", "a", 2048).unwrap();
    }

    #[tokio::test]
    async fn an_image_is_either_in_use_or_launches_nothing() {
        let lab = Lab::new().await;
        let account = AccountId::parse("000000000001").unwrap();
        let id = MicrovmId::new(Uuid::new_v4());
        let entry = lab.admission.enter(&id, &account, &arn("a")).unwrap();
        assert!(lab.admission.is_entering(&arn("a")));
        assert!(
            lab.admission.close(&arn("a")).is_none(),
            "a launch is under way"
        );
        drop(entry);
        let vm = lab.launch("000000000001", "a", 512).unwrap();
        assert!(lab.admission.close(&arn("a")).is_none(), "a microvm lives");
        assert!(!lab.admission.is_entering(&arn("a")));
        lab.end(&vm);
        let closed = lab.admission.close(&arn("a")).unwrap();
        assert!(lab.admission.enter(&id, &account, &arn("a")).is_none());
        assert!(lab.admission.enter(&id, &account, &arn("b")).is_some());
        drop(closed);
        assert!(lab.admission.enter(&id, &account, &arn("a")).is_some());
    }
}
