//! What a test works with: the whole control plane over a fake VMM and a store in memory, on a clock that
//! jumps to the next timer when nothing else is left to do. Only the signatures are left out.

use super::super::Call;
use crate::admission::Admission;
use crate::app::App;
use crate::builds::Builds;
use crate::config::{Config, Overrides, S3Source, ServeOverrides};
use crate::deletions::Deletions;
use crate::domains::CustomDomains;
use crate::headroom::Headroom;
use crate::http::Service;
use crate::keys::Keys;
use crate::objects::Objects;
use crate::s3;
use crate::throttle::{Refusals, Throttle};
use crate::upstreams::LocalUpstreams;
use bytes::Bytes;
use dormouse_api::page::PageKey;
use dormouse_api::route::route;
use dormouse_core::{AccountId, limits};
use dormouse_image::{ImageConfig, LocalImages};
use dormouse_ingress::{Authority, Ingress, TokenKeys};
use dormouse_node::boot::BootFiles;
use dormouse_node::driver::Means;
use dormouse_node::layers::LayerCache;
use dormouse_node::layout::Layout;
use dormouse_node::lifecycle::Host;
use dormouse_node::node::Node;
use dormouse_node::vmm::fake::Fake;
use dormouse_secrets::Sealer;
use dormouse_store::{Store, StoreError};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use std::io::Write;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The daemon's own account.
pub(super) const ONE: &str = "000000000001";
/// Another account.
pub(super) const TWO: &str = "000000000002";
/// The account's bucket, of which each has one.
const ARTIFACT: &str = "app.zip";
const BASE: &str = "localhost/debian:12";
pub(super) const BASE_ARN: &str = "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1";
pub(super) const ROLE: &str = "arn:aws:iam::000000000001:role/build";

/// What outlives every daemon: files, store, machines and the configuration.
pub(super) struct World {
    dir: TempDir,
    store: Store,
    pub(super) fake: Fake,
    config: String,
    sealer: Arc<Sealer>,
}

impl World {
    /// An empty data directory with a base image. `config` is TOML.
    pub(super) fn new(config: &str) -> Self {
        Self::over(Store::memory(), config)
    }

    /// The same over this store.
    pub(super) fn over(store: Store, config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        layout.create().unwrap();
        let tar = dir.path().join("base.tar");
        let mut base = tar::Builder::new(std::fs::File::create(&tar).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        base.append_data(&mut header, "etc", std::io::empty())
            .unwrap();
        base.into_inner().unwrap();
        let images = LocalImages::open(&layout.images()).unwrap();
        images
            .import_rootfs_tar(BASE, &tar, ImageConfig::bare(), 16 << 20)
            .unwrap();
        Self {
            dir,
            store,
            fake: Fake::new(),
            config: config.to_owned(),
            sealer: Arc::new(Sealer::random()),
        }
    }

    /// A daemon's life, ended as by `kill -9` wherever things stand when `work` is done.
    pub(super) fn day<T>(&self, work: impl AsyncFnOnce(Lab) -> T) -> T {
        jumping_clock().block_on(async { work(self.start().await.unwrap()).await })
    }

    /// What is in the folder of a build.
    pub(super) fn build_dirs(&self) -> Vec<PathBuf> {
        let builds = std::fs::read_dir(self.dir.path().join("builds")).unwrap();
        builds.map(|entry| entry.unwrap().path()).collect()
    }

    fn config(&self) -> Config {
        let file = self.dir.path().join("dormouse.toml");
        let text = format!("account = \"{ONE}\"\n{}", self.config);
        std::fs::write(&file, text).unwrap();
        let over = Overrides {
            config: Some(file),
            data_dir: Some(self.dir.path().to_owned()),
        };
        Config::load(&over, &ServeOverrides::default()).unwrap()
    }

    fn means(&self) -> Arc<Means> {
        let layout = Layout::new(self.dir.path());
        let boot = layout.boot().join("fake");
        Arc::new(Means {
            host: Host {
                vmm: Arc::new(self.fake.clone()),
                boot: BootFiles {
                    hash: "fake".to_owned(),
                    kernel: boot.join("vmlinuz"),
                    initramfs: boot.join("initramfs"),
                },
                layers: Arc::new(LayerCache::new(&layout.layers())),
                layout,
            },
            store: self.store.clone(),
            transitions: Semaphore::new(limits::TRANSITIONS_AT_ONCE),
            stop: CancellationToken::new(),
        })
    }

    async fn start(&self) -> Result<Lab, StoreError> {
        let (config, means) = (self.config(), self.means());
        let node = Node::start(Arc::clone(&means)).await?;
        let sealer = Arc::clone(&self.sealer);
        let keys = Keys::open_or_create(self.dir.path(), &config.account, sealer).unwrap();
        let keys = Arc::new(keys);
        // Whatever room the host has for MicroVMs.
        let mut roomy = config.clone();
        roomy.capacity.disk_free_min_bytes = 0;
        let s3 = s3::Service::open(&roomy, Arc::clone(&keys)).await.unwrap();
        for account in [ONE, TWO] {
            let bucket = bucket(account);
            s3.create_bucket(&bucket, &id(account)).await.unwrap();
            s3.put(
                &bucket,
                ARTIFACT,
                artifact("FROM localhost/debian:12\nCMD [\"serve\"]\n"),
            )
            .await;
            s3.put(
                &bucket,
                "slow.zip",
                artifact("FROM localhost/debian:12\nRUN sleep 50\nCMD [\"serve\"]\n"),
            )
            .await;
            s3.put(
                &bucket,
                "bad.zip",
                artifact("FROM localhost/debian:12\nRUN false\nCMD [\"serve\"]\n"),
            )
            .await;
        }
        let images = LocalImages::open(&means.host.layout.images()).unwrap();
        let builds = Builds::start(
            Arc::clone(&means),
            config.base_images.images(images),
            Objects::new(&S3Source::Embedded, s3.clone()),
            config.region.clone(),
            config.build.clone(),
            config.builds_at_once,
            config.quotas.concurrent_builds,
        )
        .await?;
        let admission = Arc::new(Admission::open(node.clone(), &self.store).await?);
        let deletions = Deletions::start(
            Arc::clone(&means),
            Arc::clone(&builds),
            Arc::clone(&admission),
        );
        let tokens = self.dir.path().join("tokens.jwks");
        let tokens = TokenKeys::load_or_create(&tokens, Arc::clone(&self.sealer)).unwrap();
        let tokens = Arc::new(tokens);
        let traffic = self.ingress(&config, &node, &tokens).metrics();
        let domains = CustomDomains::open(self.store.clone(), Arc::default()).await?;
        let app = Arc::new(App {
            ingress_port: 443,
            store: self.store.clone(),
            node,
            builds,
            deletions: deletions.await?,
            admission,
            traffic,
            headroom: Headroom::new(&config.data_dir, config.capacity),
            throttle: Throttle::new(config.quotas.calls.clone()),
            refusals: Refusals::default(),
            domains: Arc::new(domains),
            tokens,
            pages: PageKey::new(&[7; 32]),
            config,
        });
        Ok(Lab(Arc::new(Service { app, keys, s3 })))
    }

    /// An ingress without a listener.
    fn ingress(&self, config: &Config, node: &Arc<Node>, tokens: &Arc<TokenKeys>) -> Ingress {
        let authority = Authority::load_or_create(self.dir.path(), &self.sealer).unwrap();
        let authority = Arc::new(authority);
        let tls = authority.server_config(&config.endpoint_domain, &[]);
        let upstreams = LocalUpstreams {
            node: Arc::clone(node),
            limits: config.limits.clone(),
        };
        Ingress::new(
            dormouse_ingress::Config::new(&config.endpoint_domain),
            Arc::new(tls.unwrap()),
            Arc::clone(tokens),
            Arc::new(upstreams),
        )
    }
}

/// A daemon that lives now.
#[derive(Clone)]
pub(super) struct Lab(pub(super) Arc<Service>);

impl Deref for Lab {
    type Target = App;

    fn deref(&self) -> &App {
        &self.0.app
    }
}

/// An answer of the API.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) error: Option<String>,
    pub(super) body: Value,
}

impl Answer {
    /// The body of a success.
    pub(super) fn ok(self) -> Value {
        assert!(self.status.is_success(), "{self:?}");
        self.body
    }

    /// Status, error name and message of a refusal, as in `404 ResourceNotFoundException: text`.
    pub(super) fn refusal(self) -> String {
        assert!(!self.status.is_success(), "{self:?}");
        let message = self
            .body
            .get("message")
            .or_else(|| self.body.get("Message"));
        format!(
            "{} {}: {}",
            self.status.as_u16(),
            self.error.unwrap_or_default(),
            message.and_then(Value::as_str).unwrap_or_default()
        )
    }
}

impl Lab {
    /// Calls the API for an account.
    pub(super) async fn call(
        &self,
        account: &str,
        method: &str,
        path: &str,
        body: Value,
    ) -> Answer {
        let body = match body {
            Value::Null => Vec::new(),
            body => serde_json::to_vec(&body).unwrap(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(())
            .unwrap();
        let (parts, ()) = request.into_parts();
        let request_id = Uuid::new_v4();
        let call = Call {
            app: self,
            parts: &parts,
            body: &body,
            request_id,
        };
        let found = route(
            &Method::from_bytes(method.as_bytes()).unwrap(),
            parts.uri.path(),
        );
        let answered = call.admit(&id(account), &found.unwrap()).await;
        let response = answered.unwrap_or_else(|error| error.into_response(request_id));
        let header = response.headers().get("x-amzn-errortype");
        let error = header.map(|name| name.to_str().unwrap().to_owned());
        let body = response.body();
        Answer {
            status: response.status(),
            error,
            body: match body.is_empty() {
                true => Value::Null,
                false => serde_json::from_slice(body).unwrap(),
            },
        }
    }

    pub(super) async fn get(&self, account: &str, path: &str) -> Answer {
        self.call(account, "GET", path, Value::Null).await
    }

    pub(super) async fn create(&self, account: &str, name: &str, more: Value) -> Answer {
        let body = merged(
            json!({"name": name, "resources": [{"minimumMemoryInMiB": 512}]}),
            merged(settings(account, ARTIFACT), more),
        );
        self.call(account, "POST", "/2025-09-09/microvm-images", body)
            .await
    }

    pub(super) async fn update(&self, account: &str, name: &str, more: Value) -> Answer {
        let body = merged(settings(account, ARTIFACT), more);
        self.call(account, "PUT", &image_path(account, name), body)
            .await
    }

    /// Creates an image and waits until it is built.
    pub(super) async fn built(&self, account: &str, name: &str) {
        self.create(account, name, json!({})).await.ok();
        self.until_image(account, name, "CREATED").await;
    }

    /// Updates an image and waits until that is built.
    pub(super) async fn updated(&self, account: &str, name: &str) {
        self.update(account, name, json!({})).await.ok();
        self.until_image(account, name, "UPDATED").await;
    }

    pub(super) async fn image(&self, account: &str, name: &str) -> Value {
        self.get(account, &image_path(account, name)).await.ok()
    }

    pub(super) async fn run(&self, account: &str, name: &str, more: Value) -> Answer {
        let body = merged(json!({"imageIdentifier": arn(account, name)}), more);
        self.call(account, "POST", "/2025-09-09/microvms", body)
            .await
    }

    /// Launches a MicroVM, waits until it runs and answers its id.
    pub(super) async fn running(&self, account: &str, name: &str, more: Value) -> String {
        let vm = self.run(account, name, more).await.ok();
        let id = vm["microvmId"].as_str().unwrap().to_owned();
        self.until_vm(account, &id, "RUNNING").await;
        id
    }

    pub(super) async fn terminate(&self, account: &str, id: &str) {
        let path = format!("/2025-09-09/microvms/{id}");
        self.call(account, "DELETE", &path, Value::Null).await.ok();
        self.until_vm(account, id, "TERMINATED").await;
    }

    pub(super) async fn until_image(&self, account: &str, name: &str, state: &str) -> Value {
        self.until(account, &image_path(account, name), "state", state)
            .await
    }

    pub(super) async fn until_vm(&self, account: &str, id: &str, state: &str) {
        let path = format!("/2025-09-09/microvms/{id}");
        self.until(account, &path, "state", state).await;
    }

    async fn until(&self, account: &str, path: &str, member: &str, wanted: &str) -> Value {
        let mut last = Value::Null;
        for _ in 0..10_000 {
            last = self.get(account, path).await.ok();
            if last[member] == wanted {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not {wanted}, but {last}");
    }

    /// Waits until something is gone.
    pub(super) async fn until_gone(&self, account: &str, path: &str) -> String {
        for _ in 0..10_000 {
            let answer = self.get(account, path).await;
            if answer.status == StatusCode::NOT_FOUND {
                return answer.refusal();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{path} is still there");
    }
}

/// A runtime whose clock jumps to the next timer when nothing else is left to do.
fn jumping_clock() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}

pub(super) fn id(account: &str) -> AccountId {
    AccountId::parse(account).unwrap()
}

pub(super) fn bucket(account: &str) -> String {
    format!("bucket-{account}")
}

/// The members of a request that make a version, with this artifact.
pub(super) fn settings(account: &str, artifact: &str) -> Value {
    json!({
        "baseImageArn": BASE_ARN,
        "buildRoleArn": ROLE,
        "codeArtifact": {"uri": format!("s3://{}/{artifact}", bucket(account))},
    })
}

/// An artifact whose build takes a while.
pub(super) fn slow(account: &str) -> Value {
    settings(account, "slow.zip")
}

/// An artifact whose build fails.
pub(super) fn bad(account: &str) -> Value {
    settings(account, "bad.zip")
}

pub(super) fn arn(account: &str, name: &str) -> String {
    format!("arn:aws:lambda:us-east-1:{account}:microvm-image:{name}")
}

pub(super) fn encoded(arn: &str) -> String {
    arn.replace(':', "%3A").replace('/', "%2F")
}

pub(super) fn image_path(account: &str, name: &str) -> String {
    format!(
        "/2025-09-09/microvm-images/{}",
        encoded(&arn(account, name))
    )
}

pub(super) fn version_path(account: &str, name: &str, version: &str) -> String {
    format!("{}/versions/{version}", image_path(account, name))
}

pub(super) fn merged(mut one: Value, more: Value) -> Value {
    if let (Value::Object(members), Value::Object(more)) = (&mut one, more) {
        members.extend(more);
    }
    one
}

/// A zip with a Dockerfile and nothing else.
fn artifact(dockerfile: &str) -> Bytes {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    zip.start_file("Dockerfile", options).unwrap();
    zip.write_all(dockerfile.as_bytes()).unwrap();
    zip.finish().unwrap().into_inner().into()
}
