//! Image builds in the background: a bounded line that is fair among accounts, a few at once, each ending in
//! one write of all the records that it concerns.

mod line;
mod queue;

pub(crate) use queue::{Full, Place};

use crate::config::BuildConfig;
use crate::objects::{ObjectError, Objects};
use dormouse_core::chain;
use dormouse_core::image::{Build, Image, SnapshotSizes, Version, life};
use dormouse_core::{AccountId, BuildId, ImageArn};
use dormouse_image::BaseImages;
use dormouse_node::build::{self, BuildError, BuildJob, BuildLog};
use dormouse_node::clock;
use dormouse_node::driver::Means;
use dormouse_node::lifecycle::Host;
use dormouse_store::{Batch, Query, Store, StoreError, Versioned, version_key};
use queue::{Queue, Turn};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The line of builds.
#[derive(Debug)]
pub(crate) struct Builds {
    means: Arc<Means>,
    images: BaseImages,
    objects: Objects,
    region: String,
    config: BuildConfig,
    queue: Arc<Queue>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The three records that a build is about.
struct Records {
    image: Versioned<Image>,
    version: Versioned<Version>,
    build: Versioned<Build>,
}

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Artifact(#[from] ObjectError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("build log")]
    Log(#[source] io::Error),
    #[error("store")]
    Store(#[from] StoreError),
}

impl Failure {
    fn state_reason(&self) -> String {
        match self {
            Self::Artifact(error) => format!("{}: {}", error.code(), chain(error)),
            Self::Build(error) => error.state_reason(),
            Self::Log(source) if source.kind() == io::ErrorKind::StorageFull => {
                "DISK_STORAGE_FULL: The disk is full.".to_owned()
            }
            Self::Log(_) | Self::Store(_) => format!("INTERNAL_PLATFORM_ERROR: {}", chain(self)),
        }
    }
}

impl Builds {
    /// Makes the line and puts into it every build that an earlier daemon did not finish.
    pub(crate) async fn start(
        means: Arc<Means>,
        images: BaseImages,
        objects: Objects,
        region: String,
        config: BuildConfig,
        at_once: usize,
        per_account: usize,
    ) -> Result<Arc<Self>, StoreError> {
        let builds = Arc::new(Self {
            means,
            images,
            objects,
            region,
            config,
            queue: Queue::new(at_once, per_account),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let mut query = Query::default();
        loop {
            let page = builds.store().list::<Build>(&query).await?;
            let Some(last) = page.last() else {
                builds.next();
                return Ok(builds);
            };
            query.after = Some(last.seq);
            for row in page {
                if row.value.state.is_building() {
                    builds.queue.enter(row.value);
                }
            }
        }
    }

    /// Keeps a place in the line for a build of this account whose records are about to be stored.
    pub(crate) fn reserve(&self, account: &AccountId) -> Result<Place, Full> {
        self.queue.reserve(account)
    }

    /// Puts a stored build into the line, at the place that was kept for it.
    pub(crate) fn enqueue(self: &Arc<Self>, place: Place, build: Build) {
        self.queue.enter(build);
        drop(place);
        self.next();
    }

    /// Calls a build off: when this returns, it does not wait, does not run, and has no machine.
    pub(crate) async fn cancel(&self, id: &BuildId) {
        if let Some(ended) = self.queue.call_off(id) {
            tracing::info!(build = %id, "build is called off");
            ended.cancelled().await;
        }
    }

    /// Begins what may begin now.
    fn next(self: &Arc<Self>) {
        while !self.stop.is_cancelled()
            && let Some(turn) = self.queue.begin()
        {
            let builds = Arc::clone(self);
            self.tasks.spawn(async move {
                let build = turn.build.clone();
                let worker = Arc::clone(&builds);
                let work = tokio::spawn(worker.take_turn(turn));
                if work.await.is_err() {
                    let reason = "INTERNAL_PLATFORM_ERROR: The build ended unexpectedly.";
                    builds.give_up(&build.id).await;
                    builds.record(&build.id, Err(reason.to_owned())).await;
                }
                builds.queue.end(&build);
                builds.next();
            });
        }
    }

    async fn take_turn(self: Arc<Self>, turn: Turn) {
        let (stopped, build) = (self.stop.clone(), turn.build);
        tokio::select! {
            () = stopped.cancelled_owned() => self.give_up(&build.id).await,
            () = turn.called_off.cancelled_owned() => self.give_up(&build.id).await,
            () = self.carry_out(&build) => {}
        }
    }

    /// Gives up the builds under way; the next start takes them up again from the cache.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn give_up(&self, id: &BuildId) {
        if let Err(error) = build::clear(&self.means.host, id).await {
            tracing::warn!(build = %id, error = chain(&error), "build was not cleared away");
        }
    }

    /// The host that builds run on.
    pub(crate) fn host(&self) -> &Host {
        &self.means.host
    }

    fn store(&self) -> &Store {
        &self.means.store
    }

    async fn carry_out(&self, build: &Build) {
        let id = &build.id;
        tracing::info!(build = %id, image = %build.image, version = build.version, "build begins");
        let outcome = self.try_build(build).await;
        match &outcome {
            Ok(_) => tracing::info!(build = %id, "build succeeded"),
            // The customer's failure is no fault of the daemon: it is told in the log and the record.
            Err(failure) => {
                tracing::info!(build = %id, reason = failure.state_reason(), "build failed")
            }
        }
        let outcome = outcome.map_err(|failure| failure.state_reason());
        self.record(id, outcome).await;
    }

    /// Stores what a build came to, however often that takes.
    async fn record(&self, id: &BuildId, outcome: Result<SnapshotSizes, String>) {
        loop {
            match self.try_record(id, outcome.clone()).await {
                Ok(()) => return,
                // Somebody else has changed a record, a tag perhaps: decide again.
                Err(StoreError::Stale { .. }) => {}
                Err(error) => {
                    tracing::warn!(build = %id, error = chain(&error), "build was not recorded; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn try_build(&self, build_record: &Build) -> Result<SnapshotSizes, Failure> {
        let id = &build_record.id;
        let Some(records) = self.records(id).await? else {
            return Err(BuildError::Stopped.into());
        };
        let spec = records.version.value.spec.clone();
        self.begin(records).await?;
        let host = &self.means.host;
        let dir = host.layout.build(id);
        tokio::fs::create_dir_all(dir.path())
            .await
            .map_err(Failure::Log)?;
        let log = BuildLog::create(&dir.log()).map_err(Failure::Log)?;
        let artifact = dir.path().join("artifact.zip");
        log.phase(&format!("load {}", spec.artifact_uri));
        let result = async {
            let account = &build_record.account;
            self.objects
                .fetch(account, &spec.artifact_uri, &artifact)
                .await?;
            let mut environment = spec.environment;
            environment.extend(self.injected(&build_record.image, &build_record.version));
            let job = BuildJob {
                id: id.clone(),
                account: build_record.account.clone(),
                artifact: artifact.clone(),
                memory_mib: spec.memory_mib,
                environment,
                hooks: spec.hooks,
                all_capabilities: spec.all_capabilities,
                build_args: self.config.args.clone(),
                secrets: self
                    .config
                    .secrets
                    .get(&build_record.account)
                    .cloned()
                    .unwrap_or_default(),
                extra_cas: self.config.extra_cas.clone(),
            };
            Ok(build::build(host, &self.images, &job, &log).await?)
        }
        .await;
        if let Err(Failure::Artifact(error)) = &result {
            log.failed_early(&format!("{}: {}", error.code(), chain(error)));
        }
        match tokio::fs::remove_file(&artifact).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(build = %id, %error, "artifact was not deleted");
            }
            _ => {}
        }
        result
    }

    /// The variables that AWS gives every app.
    fn injected(&self, image: &ImageArn, version: &str) -> [(String, String); 4] {
        [
            ("AWS_LAMBDA_MICROVM_IMAGE_NAME", image.name.clone()),
            ("AWS_LAMBDA_MICROVM_IMAGE_ARN", image.to_string()),
            ("AWS_LAMBDA_MICROVM_IMAGE_VERSION", version.to_owned()),
            ("AWS_REGION", self.region.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }

    async fn records(&self, id: &BuildId) -> Result<Option<Records>, StoreError> {
        let store = self.store();
        let Some(build) = store.get::<Build>(id.as_str()).await? else {
            return Ok(None);
        };
        let key = version_key(&build.value.image, &build.value.version);
        let image = store.get::<Image>(&build.value.image.to_string()).await?;
        let version = store.get::<Version>(&key).await?;
        Ok(image.zip(version).map(|(image, version)| Records {
            image,
            version,
            build,
        }))
    }

    async fn begin(&self, records: Records) -> Result<(), Failure> {
        let mut version = records.version.value.clone();
        let mut build = records.build.value.clone();
        if !life::begin_build(&mut version, &mut build, clock::now()) {
            return Err(BuildError::Stopped.into());
        }
        let batch = Batch::default()
            .update(&records.version, &version)?
            .update(&records.build, &build)?;
        self.store().apply(batch).await?;
        Ok(())
    }

    async fn try_record(
        &self,
        id: &BuildId,
        outcome: Result<SnapshotSizes, String>,
    ) -> Result<(), StoreError> {
        let Some(records) = self.records(id).await? else {
            return Ok(());
        };
        let mut image = records.image.value.clone();
        let mut version = records.version.value.clone();
        let mut build = records.build.value.clone();
        if !life::finish_build(&mut image, &mut version, &mut build, outcome, clock::now()) {
            return Ok(());
        }
        let batch = Batch::default()
            .update(&records.image, &image)?
            .update(&records.version, &version)?
            .update(&records.build, &build)?;
        self.store().apply(batch).await.map(drop)
    }
}
