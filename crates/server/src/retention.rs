//! Forgets what nobody needs any more: MicroVMs that ended long ago, and client tokens that have expired.

use dormouse_core::chain;
use dormouse_core::limits;
use dormouse_core::microvm::Record;
use dormouse_core::time::Timestamp;
use dormouse_node::clock;
use dormouse_store::{Query, Store, StoreError};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

const PAUSE: Duration = Duration::from_secs(3600);

/// Sweeps now and every hour until `stop`.
pub(crate) async fn run(store: Store, stop: CancellationToken) {
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        match sweep(&store, clock::now()).await {
            Ok(0) => {}
            Ok(forgotten) => tracing::info!(forgotten, "old records forgotten"),
            // What is left is taken up in an hour.
            Err(error) => tracing::warn!(error = chain(&error), "old records were not forgotten"),
        }
    }
}

async fn sweep(store: &Store, now: Timestamp) -> Result<usize, StoreError> {
    let mut forgotten = store.expire_client_tokens(now).await?;
    let mut query = Query::default();
    loop {
        let page = store.list::<Record>(&query).await?;
        let Some(last) = page.last() else {
            return Ok(forgotten);
        };
        query.after = Some(last.seq);
        for row in page {
            let ended = row.value.terminated_at;
            if ended.is_some_and(|at| now.since(at) > limits::TERMINATED_RETENTION) {
                store.delete(&row).await?;
                forgotten += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_core::egress::Egress;
    use dormouse_core::hook::Hooks;
    use dormouse_core::microvm::State;
    use dormouse_core::{AccountId, BuildId, EndpointId, ImageArn, MicrovmId};
    use uuid::Uuid;

    fn record(terminated_at: Option<Timestamp>) -> Record {
        Record {
            id: MicrovmId::new(Uuid::new_v4()),
            account: AccountId::parse("000000000000").unwrap(),
            endpoint: EndpointId::new(Uuid::new_v4()),
            image: ImageArn::parse("arn:aws:lambda:us-east-1:000000000000:microvm-image:app")
                .unwrap(),
            image_version: "1.0".to_owned(),
            build: BuildId::new(Uuid::new_v4()),
            memory_mib: 512,
            state: terminated_at.map_or(State::Running, |_| State::Terminated),
            state_reason: None,
            started_at: Timestamp(0),
            suspended_at: None,
            terminated_at,
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

    #[tokio::test]
    async fn only_what_ended_long_ago_is_forgotten() {
        let store = Store::memory();
        let now = Timestamp(10).after(limits::TERMINATED_RETENTION);
        let old = record(Some(Timestamp(0)));
        for kept in [&record(None), &record(Some(now)), &old] {
            store.insert(kept.clone()).await.unwrap();
        }
        assert_eq!(sweep(&store, now).await.unwrap(), 1);
        assert!(
            store
                .get::<Record>(old.id.as_str())
                .await
                .unwrap()
                .is_none()
        );
        assert_eq!(sweep(&store, now).await.unwrap(), 0);
    }
}
