//! A store in memory that remembers each state that a MicroVM went through.

use crate::stage::{Point, Stage};
use async_trait::async_trait;
use dormouse_core::microvm::{Record, State};
use dormouse_store::{Backend, Kind, Memory, Query, Row, StoreError, Write, Written};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::watch;

/// Keeps rows, and what was written of MicroVMs in its order.
#[derive(Debug, Clone)]
pub(crate) struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stage: Stage,
    rows: Memory,
    written: watch::Sender<Vec<Record>>,
    refusals: AtomicUsize,
    lost_answers: AtomicUsize,
}

impl Journal {
    /// An empty store whose writes can be held up on `stage`.
    pub(crate) fn new(stage: Stage) -> Self {
        Self(Arc::new(Inner {
            stage,
            rows: Memory::default(),
            written: watch::Sender::new(Vec::new()),
            refusals: AtomicUsize::new(0),
            lost_answers: AtomicUsize::new(0),
        }))
    }

    /// The states of a MicroVM so far, oldest first.
    pub(crate) fn states(&self, vm: &Record) -> Vec<State> {
        let written = self.0.written.borrow();
        written
            .iter()
            .filter(|record| record.id == vm.id)
            .map(|record| record.state)
            .collect()
    }

    /// How often a MicroVM has come into this state.
    pub(crate) fn count(&self, vm: &Record, state: State) -> usize {
        self.states(vm)
            .iter()
            .filter(|found| **found == state)
            .count()
    }

    /// Tells of each write of a MicroVM.
    pub(crate) fn changes(&self) -> watch::Receiver<Vec<Record>> {
        self.0.written.subscribe()
    }

    /// Refuses the next `times` writes.
    pub(crate) fn refuse_next(&self, times: usize) {
        self.0.refusals.store(times, Ordering::Relaxed);
    }

    /// Does the next write and says that it failed, as a connection that breaks at the wrong moment.
    pub(crate) fn lose_next_answer(&self) {
        self.0.lost_answers.store(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Backend for Journal {
    async fn get(&self, kind: Kind, id: &str) -> Result<Option<Row>, StoreError> {
        self.0.rows.get(kind, id).await
    }

    async fn list(&self, kind: Kind, query: &Query) -> Result<Vec<Row>, StoreError> {
        self.0.rows.list(kind, query).await
    }

    async fn apply(&self, writes: Vec<Write>) -> Result<Vec<Written>, StoreError> {
        if take(&self.0.refusals) {
            return Err(broken());
        }
        let records: Vec<Record> = writes.iter().filter_map(microvm).collect();
        let states: Vec<State> = records.iter().map(|record| record.state).collect();
        for state in &states {
            self.0.stage.pass(Point::BeforeWrite(*state)).await;
        }
        let written = self.0.rows.apply(writes).await?;
        self.0.written.send_modify(|all| all.extend(records));
        for state in &states {
            self.0.stage.pass(Point::AfterWrite(*state)).await;
        }
        if take(&self.0.lost_answers) {
            Err(broken())
        } else {
            Ok(written)
        }
    }
}

fn microvm(write: &Write) -> Option<Record> {
    let (kind, body) = match write {
        Write::Insert(row) => (row.kind, &row.body),
        Write::Update { kind, body, .. } => (*kind, body),
        Write::Delete { .. } => return None,
    };
    (kind == Kind::Microvm).then(|| serde_json::from_value(body.clone()).unwrap())
}

fn take(count: &AtomicUsize) -> bool {
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        })
        .is_ok()
}

fn broken() -> StoreError {
    StoreError::Closed
}
