//! Custom domains: which are taken, by which MicroVM, and that they are free again when it has ended.
//!
//! The store has the truth, one row a name. The ingress reads the same in memory.

use dormouse_core::chain;
use dormouse_core::microvm::{Record, State};
use dormouse_core::{AccountId, MicrovmId, limits};
use dormouse_ingress::Domains;
use dormouse_store::{Domain, Query, Store, StoreError, Versioned};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// The custom domains of all accounts.
#[derive(Debug)]
pub(crate) struct CustomDomains {
    store: Store,
    map: Arc<Domains>,
    /// One change at a time, so that store and memory agree.
    changes: Semaphore,
}

/// Why a name is not given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    /// A MicroVM that lives has it.
    #[error("the name is taken")]
    Taken,
    /// The MicroVM has as many as it may have.
    #[error("too many names")]
    TooMany,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CustomDomains {
    /// Reads what is stored into `map`.
    pub(crate) async fn open(store: Store, map: Arc<Domains>) -> Result<Self, StoreError> {
        let domains = Self {
            store,
            map,
            changes: Semaphore::new(1),
        };
        for row in domains.all().await? {
            domains.map.point(row.value.name, row.value.endpoint);
        }
        Ok(domains)
    }

    /// Lets a name stand for a MicroVM's endpoint. A MicroVM that has it already keeps it.
    pub(crate) async fn claim(&self, vm: &Record, name: &str) -> Result<(), ClaimError> {
        let _change = self.changes.acquire().await;
        if let Some(holder) = self.store.get::<Domain>(name).await? {
            if holder.value.microvm == vm.id {
                return Ok(());
            }
            if self.lives(&holder.value.microvm).await? {
                return Err(ClaimError::Taken);
            }
            self.drop_row(&holder).await?;
        }
        if self.list(&vm.id).await?.len() >= limits::MICROVM_DOMAINS_MAX {
            return Err(ClaimError::TooMany);
        }
        let domain = Domain {
            name: name.to_owned(),
            account: vm.account.clone(),
            microvm: vm.id.clone(),
            endpoint: vm.endpoint,
        };
        let stored = self.store.insert(domain).await?;
        self.map.point(stored.value.name, stored.value.endpoint);
        Ok(())
    }

    /// The names of a MicroVM, in the order in which it got them.
    pub(crate) async fn list(&self, vm: &MicrovmId) -> Result<Vec<String>, StoreError> {
        let rows = self
            .store
            .list::<Domain>(&Query::under(vm.to_string()))
            .await?;
        Ok(rows.into_iter().map(|row| row.value.name).collect())
    }

    /// Takes a name from a MicroVM of this account; false when it does not have it.
    pub(crate) async fn release(
        &self,
        account: &AccountId,
        vm: &MicrovmId,
        name: &str,
    ) -> Result<bool, StoreError> {
        let _change = self.changes.acquire().await;
        let row = self.store.get_owned::<Domain>(account, name).await?;
        match row.filter(|row| row.value.microvm == *vm) {
            Some(row) => self.drop_row(&row).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Takes the names of MicroVMs that have ended back, again and again until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(limits::DOMAINS_SWEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            if let Err(error) = self.sweep().await {
                tracing::warn!(error = chain(&error), "custom domains were not looked over");
            }
        }
    }

    async fn sweep(&self) -> Result<(), StoreError> {
        if self.map.is_empty() {
            return Ok(());
        }
        for row in self.all().await? {
            if self.lives(&row.value.microvm).await? {
                continue;
            }
            let _change = self.changes.acquire().await;
            match self.drop_row(&row).await {
                // Somebody else has it by now.
                Ok(()) | Err(StoreError::Stale { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn drop_row(&self, row: &Versioned<Domain>) -> Result<(), StoreError> {
        self.store.delete(row).await?;
        self.map.release(&row.value.name);
        Ok(())
    }

    async fn lives(&self, vm: &MicrovmId) -> Result<bool, StoreError> {
        let record = self.store.get::<Record>(vm.as_str()).await?;
        Ok(record.is_some_and(|record| record.value.state != State::Terminated))
    }

    async fn all(&self) -> Result<Vec<Versioned<Domain>>, StoreError> {
        let (mut all, mut query) = (Vec::new(), Query::default());
        loop {
            let page = self.store.list::<Domain>(&query).await?;
            let Some(last) = page.last() else {
                return Ok(all);
            };
            query.after = Some(last.seq);
            all.extend(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_core::egress::Egress;
    use dormouse_core::hook::Hooks;
    use dormouse_core::{BuildId, EndpointId, ImageArn, Timestamp};
    use uuid::Uuid;

    const NAME: &str = "app.example.org";

    fn record(account: &str) -> Record {
        let image = "arn:aws:lambda:us-east-1:000000000001:microvm-image:app";
        Record {
            id: MicrovmId::new(Uuid::new_v4()),
            account: AccountId::parse(account).unwrap(),
            endpoint: EndpointId::new(Uuid::new_v4()),
            image: ImageArn::parse(image).unwrap(),
            image_version: "1.0".to_owned(),
            build: BuildId::new(Uuid::new_v4()),
            memory_mib: 512,
            state: State::Running,
            state_reason: None,
            started_at: Timestamp(0),
            suspended_at: None,
            terminated_at: None,
            max_duration_s: 28_800,
            idle_policy: None,
            ingress_connectors: Vec::new(),
            egress_connectors: Vec::new(),
            egress: Egress::default(),
            execution_role: None,
            hooks: Hooks::default(),
            run_hook_payload: None,
        }
    }

    struct Bench {
        store: Store,
        map: Arc<Domains>,
        domains: CustomDomains,
    }

    impl Bench {
        async fn new() -> Self {
            let (store, map) = (Store::memory(), Arc::new(Domains::default()));
            let domains = CustomDomains::open(store.clone(), Arc::clone(&map)).await;
            Self {
                store,
                map,
                domains: domains.unwrap(),
            }
        }

        async fn vm(&self, account: &str) -> Versioned<Record> {
            self.store.insert(record(account)).await.unwrap()
        }

        async fn end(&self, vm: &Versioned<Record>) {
            let mut ended = vm.value.clone();
            ended.state = State::Terminated;
            self.store.update(vm, ended).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_name_is_one_microvms_over_all_accounts_and_survives_a_restart() {
        let bench = Bench::new().await;
        let (one, two) = (
            bench.vm("000000000001").await,
            bench.vm("000000000002").await,
        );
        let (one, two) = (&one.value, &two.value);
        bench.domains.claim(one, NAME).await.unwrap();
        bench.domains.claim(one, NAME).await.unwrap();
        assert_eq!(bench.domains.list(&one.id).await.unwrap(), [NAME]);
        let refused = bench.domains.claim(two, NAME).await;
        assert!(matches!(refused, Err(ClaimError::Taken)));
        assert_eq!(bench.map.endpoint(NAME).as_ref(), Some(&one.endpoint));
        for (account, vm) in [(&two.account, &one.id), (&one.account, &two.id)] {
            assert!(!bench.domains.release(account, vm, NAME).await.unwrap());
        }

        let map = Arc::new(Domains::default());
        let again = CustomDomains::open(bench.store.clone(), Arc::clone(&map));
        let again = again.await.unwrap();
        assert_eq!(map.endpoint(NAME).as_ref(), Some(&one.endpoint));
        assert!(again.release(&one.account, &one.id, NAME).await.unwrap());
        assert_eq!(map.endpoint(NAME), None);
        again.claim(two, NAME).await.unwrap();
    }

    #[tokio::test]
    async fn the_names_of_a_microvm_that_has_ended_are_free() {
        let bench = Bench::new().await;
        let (one, two) = (
            bench.vm("000000000001").await,
            bench.vm("000000000002").await,
        );
        for name in [NAME, "b.example.org"] {
            bench.domains.claim(&one.value, name).await.unwrap();
        }
        bench.domains.sweep().await.unwrap();
        assert!(bench.map.endpoint(NAME).is_some());
        bench.end(&one).await;
        // At once for who asks, and soon without being asked.
        bench.domains.claim(&two.value, NAME).await.unwrap();
        bench.domains.sweep().await.unwrap();
        assert_eq!(bench.map.endpoint(NAME), Some(two.value.endpoint));
        assert_eq!(bench.map.endpoint("b.example.org"), None);
        assert!(bench.domains.list(&one.value.id).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_microvm_has_a_bounded_number_of_names() {
        let bench = Bench::new().await;
        let vm = bench.vm("000000000001").await.value;
        for number in 0..limits::MICROVM_DOMAINS_MAX {
            let name = format!("n{number}.example.org");
            bench.domains.claim(&vm, &name).await.unwrap();
        }
        let refused = bench.domains.claim(&vm, NAME).await;
        assert!(matches!(refused, Err(ClaimError::TooMany)));
    }
}
