//! Deletions in the background: files first, records last, so that a crash at any point leaves a record that
//! says what is still to do.
//!
//! | intent, as stored | done when |
//! |---|---|
//! | an image is DELETING | its builds are called off, no MicroVM is left, all files are gone |
//! | a version is DELETING | its build is called off; files that a MicroVM uses stay behind with their build |
//! | a build is DELETING | the last MicroVM that uses it has ended |

use crate::admission::Admission;
use crate::builds::Builds;
use dormouse_core::chain;
use dormouse_core::image::{Build, Image, ImageState, Version, VersionState, life};
use dormouse_core::microvm::{Record, State};
use dormouse_core::{BuildId, ImageArn, limits};
use dormouse_node::build;
use dormouse_node::clock;
use dormouse_node::driver::Means;
use dormouse_store::{
    Batch, ClientToken, Entity, Query, Store, StoreError, Versioned, version_key,
};
use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Carries deletions out.
#[derive(Debug)]
pub(crate) struct Deletions {
    means: Arc<Means>,
    builds: Arc<Builds>,
    admission: Arc<Admission>,
    /// Builds whose files wait for MicroVMs to end.
    left_behind: Mutex<BTreeSet<BuildId>>,
    more: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Why a deletion does not go on.
#[derive(Debug, thiserror::Error)]
enum Halt {
    /// The files cannot be removed.
    #[error("files were not deleted")]
    Files(#[source] Box<dyn Error + Send + Sync>),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The daemon stops; the next one takes the deletion up again.
    #[error("the daemon stops")]
    Stopping,
}

impl Deletions {
    /// Takes up what an earlier daemon did not finish.
    pub(crate) async fn start(
        means: Arc<Means>,
        builds: Arc<Builds>,
        admission: Arc<Admission>,
    ) -> Result<Arc<Self>, StoreError> {
        let deletions = Arc::new(Self {
            means,
            builds,
            admission,
            left_behind: Mutex::default(),
            more: Notify::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let store = deletions.store().clone();
        each(&store, |image: Image| {
            if image.state == ImageState::Deleting {
                deletions.image(image.arn);
            }
        })
        .await?;
        each(&store, |version: Version| {
            if version.state == VersionState::Deleting {
                deletions.version(version);
            }
        })
        .await?;
        each(&store, |build: Build| {
            if build.state == VersionState::Deleting {
                deletions.left_behind().insert(build.id);
            }
        })
        .await?;
        let sweeper = Arc::clone(&deletions);
        deletions.tasks.spawn(async move { sweeper.sweep().await });
        Ok(deletions)
    }

    /// Carries out the stored intent to delete an image.
    pub(crate) fn image(self: &Arc<Self>, arn: ImageArn) {
        let deletions = Arc::clone(self);
        self.tasks.spawn(async move {
            match deletions.delete_image(&arn).await {
                Ok(()) => tracing::info!(image = %arn, "image deleted"),
                Err(Halt::Stopping) => {}
                Err(halt) => {
                    tracing::warn!(image = %arn, error = chain(&halt), "image was not deleted");
                    deletions.give_image_up(&arn).await;
                }
            }
        });
    }

    /// Carries out the stored intent to delete a version.
    pub(crate) fn version(self: &Arc<Self>, version: Version) {
        let deletions = Arc::clone(self);
        self.tasks.spawn(async move {
            let (image, name) = (&version.image, &version.version);
            match deletions.delete_version(&version).await {
                Ok(()) => tracing::info!(%image, version = name, "version deleted"),
                Err(Halt::Stopping) => {}
                Err(halt) => {
                    let error = chain(&halt);
                    tracing::warn!(%image, version = name, error, "version was not deleted");
                    deletions.give_version_up(&version).await;
                }
            }
        });
    }

    /// Lets what is under way come to a point at which the next daemon can take it up.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn delete_image(&self, arn: &ImageArn) -> Result<(), Halt> {
        let Some(doomed) = self.doomed(arn, None).await? else {
            return Ok(());
        };
        let id = doomed.value.id;
        let builds = self.builds_of_image(arn).await?;
        for build in &builds {
            self.builds.cancel(&build.value.id).await;
        }
        // The last ones are being taken apart, or the deletion would have been refused.
        while self.is_used(arn, |_| true).await? {
            self.pause().await?;
        }
        for build in &builds {
            self.remove_files(&build.value.id).await?;
        }
        loop {
            let Some(image) = self.doomed(arn, Some(&id)).await? else {
                return Ok(());
            };
            let mut batch = Batch::default();
            for version in self.versions(arn).await? {
                let key = version.value.key();
                batch = self.with_tokens(batch, &key).await?.delete(&version);
            }
            for build in self.builds_of_image(arn).await? {
                batch = batch.delete(&build);
            }
            match self.store().apply(batch.delete(&image)).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Stale { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The image of this ARN that is to be deleted. An image that has taken over the name of a deleted one has
    /// another id.
    async fn doomed(
        &self,
        arn: &ImageArn,
        id: Option<&str>,
    ) -> Result<Option<Versioned<Image>>, StoreError> {
        let image = self.store().get::<Image>(&arn.to_string()).await?;
        Ok(image.filter(|image| {
            image.value.state == ImageState::Deleting && id.is_none_or(|id| image.value.id == id)
        }))
    }

    async fn delete_version(&self, version: &Version) -> Result<(), Halt> {
        let arn = &version.image;
        let builds = self.builds_of_version(&version.key()).await?;
        for build in &builds {
            self.builds.cancel(&build.value.id).await;
        }
        let mut left_behind = Vec::new();
        for build in builds.iter().map(|build| &build.value) {
            match self.is_used(arn, |vm| vm.build == build.id).await? {
                true => left_behind.push(build.id.clone()),
                false => self.remove_files(&build.id).await?,
            }
        }
        while !self.forget_version(version, &left_behind).await? {}
        self.left_behind().extend(left_behind);
        self.more.notify_one();
        Ok(())
    }

    /// Stores that a version is gone; says whether nobody else changed a record meanwhile.
    async fn forget_version(&self, gone: &Version, left: &[BuildId]) -> Result<bool, StoreError> {
        let (store, key) = (self.store(), gone.key());
        let image = store.get::<Image>(&gone.image.to_string()).await?;
        let version = store.get::<Version>(&key).await?;
        // A version of another image that has taken over the name is none of ours.
        let version = version.filter(|version| {
            let (is, was) = (&version.value, gone);
            is.state == VersionState::Deleting && is.created_at == was.created_at
        });
        let Some((image, version)) = image.zip(version) else {
            return Ok(true);
        };
        let mut updated = image.value.clone();
        if !life::finish_version_delete(&mut updated, clock::now()) {
            // The whole image is being deleted, and this version with it.
            return Ok(true);
        }
        let mut batch = Batch::default().update(&image, &updated)?;
        batch = self.with_tokens(batch, &key).await?.delete(&version);
        for build in self.builds_of_version(&key).await? {
            let mut waiting = build.value.clone();
            waiting.state = VersionState::Deleting;
            batch = match left.contains(&waiting.id) {
                true => batch.update(&build, &waiting)?,
                false => batch.delete(&build),
            };
        }
        match store.apply(batch).await {
            Ok(_) => Ok(true),
            Err(StoreError::Stale { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The deletion failed: the image says so, and may be asked again.
    async fn give_image_up(&self, arn: &ImageArn) {
        let store = self.store();
        let given_up = async {
            let Some(image) = self.doomed(arn, None).await? else {
                return Ok(());
            };
            let (mut failed, now) = (image.value.clone(), clock::now());
            life::fail_image_delete(&mut failed, now);
            let mut batch = Batch::default().update(&image, &failed)?;
            for version in self.versions(arn).await? {
                let mut failed = version.value.clone();
                life::fail_delete_with_image(&mut failed, now);
                batch = batch.update(&version, &failed)?;
            }
            store.apply(batch).await.map(drop)
        };
        if let Err(error) = given_up.await {
            tracing::warn!(image = %arn, error = chain(&error), "failed deletion was not recorded");
        }
    }

    async fn give_version_up(&self, version: &Version) {
        let store = self.store();
        let given_up = async {
            let image = store.get::<Image>(&version.image.to_string()).await?;
            let row = store.get::<Version>(&version.key()).await?;
            let Some((image, row)) = image.zip(row) else {
                return Ok(());
            };
            let mut failed = (image.value.clone(), row.value.clone());
            life::fail_version_delete(&mut failed.0, &mut failed.1, clock::now());
            let batch = Batch::default()
                .update(&image, &failed.0)?
                .update(&row, &failed.1)?;
            store.apply(batch).await.map(drop)
        };
        if let Err(error) = given_up.await {
            let image = &version.image;
            tracing::warn!(%image, error = chain(&error), "failed deletion was not recorded");
        }
    }

    /// Deletes what was left behind for MicroVMs, once they have ended.
    async fn sweep(&self) {
        loop {
            let waiting: Vec<BuildId> = self.left_behind().iter().cloned().collect();
            for id in &waiting {
                match self.sweep_one(id).await {
                    Ok(true) => {
                        self.left_behind().remove(id);
                    }
                    Ok(false) => {}
                    Err(Halt::Stopping) => return,
                    Err(halt) => {
                        tracing::warn!(build = %id, error = chain(&halt), "build was not deleted");
                    }
                }
            }
            let idle = self.left_behind().is_empty();
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.more.notified() => {}
                () = sleep(limits::DELETE_LOOK_AGAIN), if !idle => {}
            }
        }
    }

    /// Says whether the build is gone.
    async fn sweep_one(&self, id: &BuildId) -> Result<bool, Halt> {
        let Some(build) = self.store().get::<Build>(id.as_str()).await? else {
            return Ok(true);
        };
        let image = &build.value.image;
        if self.is_used(image, |vm| vm.build == *id).await? {
            return Ok(false);
        }
        self.remove_files(id).await?;
        self.store().delete(&build).await?;
        tracing::info!(build = %id, "build deleted: its last microvm has ended");
        Ok(true)
    }

    /// Whether a MicroVM of this image that `uses` picks is not over yet, or may be about to be stored.
    async fn is_used(
        &self,
        image: &ImageArn,
        uses: impl Fn(&Record) -> bool,
    ) -> Result<bool, StoreError> {
        if self.admission.is_entering(image) {
            return Ok(true);
        }
        let mut query = Query::under(image.to_string());
        loop {
            let page = self.store().list::<Record>(&query).await?;
            let Some(last) = page.last() else {
                return Ok(false);
            };
            query.after = Some(last.seq);
            let mut vms = page.iter().map(|row| &row.value);
            if vms.any(|vm| vm.state != State::Terminated && uses(vm)) {
                return Ok(true);
            }
        }
    }

    /// Ends what a build may have left running and deletes its folder.
    async fn remove_files(&self, id: &BuildId) -> Result<(), Halt> {
        let mut attempt = 1;
        loop {
            let error = match self.try_remove(id).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if attempt == limits::DELETE_ATTEMPTS {
                return Err(Halt::Files(error));
            }
            attempt += 1;
            self.pause().await?;
        }
    }

    async fn try_remove(&self, id: &BuildId) -> Result<(), Box<dyn Error + Send + Sync>> {
        build::clear(&self.means.host, id).await?;
        let dir = self.means.host.layout.build(id);
        match tokio::fs::remove_dir_all(dir.path()).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn pause(&self) -> Result<(), Halt> {
        tokio::select! {
            () = self.stop.cancelled() => Err(Halt::Stopping),
            () = sleep(limits::DELETE_RETRY) => Ok(()),
        }
    }

    async fn versions(&self, image: &ImageArn) -> Result<Vec<Versioned<Version>>, StoreError> {
        self.store().list(&Query::under(image.to_string())).await
    }

    async fn builds_of_image(&self, image: &ImageArn) -> Result<Vec<Versioned<Build>>, StoreError> {
        let mut builds = Vec::new();
        for version in self.versions(image).await? {
            let key = version_key(image, &version.value.version);
            builds.extend(self.builds_of_version(&key).await?);
        }
        Ok(builds)
    }

    async fn builds_of_version(&self, key: &str) -> Result<Vec<Versioned<Build>>, StoreError> {
        self.store().list(&Query::under(key)).await
    }

    /// Adds the deletion of the client tokens whose requests made this version.
    async fn with_tokens(&self, mut batch: Batch, key: &str) -> Result<Batch, StoreError> {
        let query = Query::under(key);
        for token in self.store().list::<ClientToken>(&query).await? {
            batch = batch.delete(&token);
        }
        Ok(batch)
    }

    fn store(&self) -> &Store {
        &self.means.store
    }

    fn left_behind(&self) -> MutexGuard<'_, BTreeSet<BuildId>> {
        // The set is whole after each statement.
        self.left_behind
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Goes through all values of a kind, oldest first.
async fn each<E: Entity>(store: &Store, mut visit: impl FnMut(E)) -> Result<(), StoreError> {
    let mut query = Query::default();
    loop {
        let page = store.list::<E>(&query).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        query.after = Some(last.seq);
        page.into_iter().for_each(|row| visit(row.value));
    }
}
