//! `dormouse serve`: puts the parts together, runs until it is told to stop, and leaves MicroVMs running.

use crate::acceleration;
use crate::admission::Admission;
use crate::api;
use crate::app::App;
use crate::assets::Assets;
use crate::builds::Builds;
use crate::cache;
use crate::config::{Config, MANAGED_BASE};
use crate::daemon::{DaemonFile, DataLock};
use crate::deletions::Deletions;
use crate::domains::CustomDomains;
use crate::front::Front;
use crate::headroom::Headroom;
use crate::http::Service;
use crate::keys::Keys;
use crate::objects::Objects;
use crate::privileges;
use crate::retention;
use crate::s3;
use crate::sealing;
use crate::telemetry;
use crate::throttle::{Refusals, Throttle};
use crate::upstreams::LocalUpstreams;
use anyhow::{Context, Result};
use dormouse_api::page::PageKey;
use dormouse_core::limits;
use dormouse_image::{ImageConfig, LocalImageError, LocalImages};
use dormouse_ingress::{Authority, TokenKeys};
use dormouse_node::boot::BootFiles;
use dormouse_node::driver::Means;
use dormouse_node::host::jail::Jailer;
use dormouse_node::host::slot::{SlotConfig, SlotPool};
use dormouse_node::layers::LayerCache;
use dormouse_node::layout::Layout;
use dormouse_node::lifecycle::Host;
use dormouse_node::node::Node;
use dormouse_node::vmm::qemu::Qemu;
use dormouse_secrets::Sealer;
use dormouse_store::Store;
use rustix::fs::Mode;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Runs the daemon until SIGTERM or SIGINT.
pub(crate) async fn run(config: Config) -> Result<()> {
    telemetry::start(config.log);
    privileges::raise_open_files()?;
    let open_files = privileges::open_files();
    if open_files < limits::OPEN_FILES {
        tracing::warn!(
            open_files,
            needed = limits::OPEN_FILES,
            connections_max = privileges::connections_max(),
            "the limit of open files is lower than what all listeners may need, so each takes fewer connections: raise its hard limit"
        );
    }
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let running = Running::start(config).await?;
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    running.stop().await;
    Ok(())
}

/// The daemon's parts that must be told of its end.
struct Running {
    app: Arc<App>,
    slots: Arc<SlotPool>,
    stop: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    _lock: DataLock,
}

impl Running {
    async fn start(config: Config) -> Result<Self> {
        // What it writes is its own, whatever it was started with; jails are shown single files.
        rustix::process::umask(Mode::RWXG | Mode::RWXO);
        let data_dir = config.data_dir.clone();
        let layout = Layout::new(&data_dir);
        layout
            .create()
            .with_context(|| format!("create {}", data_dir.display()))?;
        let lock = DataLock::acquire(&data_dir)?;
        let assets = Assets::find(config.assets_dir.as_deref())?;
        let sealer = Arc::new(sealing::for_daemon(&config)?);
        let keys = Keys::open_or_create(&data_dir, &config.account, Arc::clone(&sealer))?;
        let keys = Arc::new(keys);
        let (authority, tokens) = credentials(&data_dir, &sealer)?;
        let domains = Arc::default();
        let front = Front::open(&config, &authority, &domains, &sealer).await?;

        let images = prepare_images(&layout, &assets).await?;
        let images = config.base_images.images(images);
        let slots = SlotPool::start(slot_config(&config))
            .await
            .context("network slots")?;
        let store = Store::sqlite_adopting(&config.database(), Arc::clone(&sealer)).await?;
        let means = means(&config, &layout, &assets, Arc::clone(&slots), store).await?;
        let means = Arc::new(means);
        let node = Node::start(Arc::clone(&means)).await?;
        let s3 = s3::Service::open(&config, Arc::clone(&keys)).await;
        let s3 = s3.context("embedded S3")?;
        let objects = Objects::new(&config.s3, s3.clone());
        let region = config.region.clone();
        let at_once = config.builds_at_once;
        let per_account = config.quotas.concurrent_builds;
        let builds = Builds::start(
            Arc::clone(&means),
            images,
            objects,
            region,
            config.build.clone(),
            at_once,
            per_account,
        )
        .await?;
        let admission = Arc::new(Admission::open(node.clone(), &means.store).await?);
        let deletions = Deletions::start(
            Arc::clone(&means),
            Arc::clone(&builds),
            Arc::clone(&admission),
        )
        .await?;

        let domains = Arc::new(CustomDomains::open(means.store.clone(), domains).await?);
        let upstreams = LocalUpstreams {
            node: Arc::clone(&node),
            limits: config.limits.clone(),
        };
        let proxy = front.proxy(&config, Arc::clone(&tokens), upstreams);
        let app = Arc::new(App {
            ingress_port: front.ingress.addr.port(),
            store: means.store.clone(),
            node: Arc::clone(&node),
            builds,
            deletions,
            admission,
            traffic: proxy.metrics(),
            headroom: Headroom::new(&config.data_dir, config.capacity),
            throttle: Throttle::new(config.quotas.calls.clone()),
            refusals: Refusals::default(),
            domains,
            tokens: Arc::clone(&tokens),
            pages: PageKey::new(&page_secret()?),
            config,
        });
        api::resume_connectors(&app)
            .await
            .context("network connectors")?;
        announce(&app, &front, means.host.vmm.name()).await?;

        let stop = CancellationToken::new();
        let (followed, swept) = (Arc::clone(&keys), s3.clone());
        let service = Arc::new(Service {
            app: Arc::clone(&app),
            keys,
            s3,
        });
        let mut tasks = front.start(&service, proxy, &stop);
        let rotation = app.config.token_rotation;
        tasks.extend([
            tokio::spawn(tokens.rotate(rotation, stop.clone())),
            tokio::spawn(Arc::clone(&app.domains).run(stop.clone())),
            tokio::spawn(cache::run(
                Arc::clone(&means),
                app.config.build.clone(),
                stop.clone(),
            )),
            tokio::spawn(followed.follow(stop.clone())),
            tokio::spawn(swept.sweep(stop.clone())),
            tokio::spawn(retention::run(app.store.clone(), stop.clone())),
        ]);
        Ok(Self {
            app,
            slots,
            stop,
            tasks,
            _lock: lock,
        })
    }

    /// No new requests, then no new transitions, then nothing of ours; MicroVMs run on.
    async fn stop(self) {
        tracing::info!("stopping; microvms keep running");
        self.stop.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
        self.app.deletions.stop().await;
        self.app.builds.stop().await;
        self.app.node.stop().await;
        self.slots.stop().await;
        tracing::info!("stopped");
    }
}

/// Opens the local images; the managed base is made from the assets when it is missing.
async fn prepare_images(layout: &Layout, assets: &Assets) -> Result<LocalImages> {
    let (dir, tar) = (layout.images(), assets.base_tar());
    tokio::task::spawn_blocking(move || {
        let images = LocalImages::open(&dir)?;
        if let Err(LocalImageError::Unknown { .. }) = images.resolve(MANAGED_BASE) {
            tracing::info!(image = MANAGED_BASE, "making the managed base image");
            let disk_bytes = limits::disk_bytes(limits::MEMORY_DEFAULT_MIB);
            images.import_rootfs_tar(MANAGED_BASE, &tar, ImageConfig::bare(), disk_bytes)?;
        }
        Ok(images)
    })
    .await?
}

async fn means(
    config: &Config,
    layout: &Layout,
    assets: &Assets,
    slots: Arc<SlotPool>,
    store: Store,
) -> Result<Means> {
    let boot = {
        let (layout, assets) = (layout.clone(), assets.clone());
        tokio::task::spawn_blocking(move || {
            BootFiles::install(
                &layout,
                &assets.kernel(),
                &assets.agent(),
                &assets.modules(),
            )
        })
    };
    let boot = boot.await?.context("install guest kernel and agent")?;
    let jailer = {
        let (jail, dir) = (assets.jail(), layout.jail());
        tokio::task::spawn_blocking(move || Jailer::install(&jail, Path::new(QEMU), &dir))
    };
    let jailer = jailer.await?.context("copy QEMU for its jails")?;
    let accel = acceleration::choose(config, &boot, &jailer).await?;
    let vmm = Qemu::new(jailer, accel, Arc::clone(&slots), layout.foundations());
    slots
        .release_orphans(&Qemu::slots_in_use(&layout.vm_dirs()?)?)
        .await
        .context("network slots")?;
    Ok(Means {
        host: Host {
            layout: layout.clone(),
            vmm: Arc::new(vmm),
            boot,
            layers: Arc::new(LayerCache::new(&layout.layers())),
        },
        store,
        transitions: Semaphore::new(limits::TRANSITIONS_AT_ONCE),
        stop: CancellationToken::new(),
    })
}

/// QEMU's program, found by `PATH`.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

fn slot_config(config: &Config) -> SlotConfig {
    let mut slots = SlotConfig::new(owner_tag(&config.data_dir));
    slots.warm = config.network.warm_slots;
    if let Some(network) = config.network.slots {
        slots.network = network;
    }
    slots.block = config.network.block.clone();
    slots.allow = config.network.allow.clone();
    slots.reachable = config.network.subnets.values().flatten().copied().collect();
    slots.resolvers = config.network.dns.clone();
    slots
}

/// Tells the slots of this data directory from those of others on the host.
fn owner_tag(data_dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let path = data_dir.as_os_str().as_bytes();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, path);
    hex::encode(&digest.as_ref()[..3])
}

fn credentials(data_dir: &Path, sealer: &Arc<Sealer>) -> Result<(Arc<Authority>, Arc<TokenKeys>)> {
    let tls = data_dir.join("tls");
    std::fs::create_dir_all(&tls).with_context(|| format!("create {}", tls.display()))?;
    let authority = Arc::new(Authority::load_or_create(&tls, sealer)?);
    let tokens = data_dir.join("keys/tokens.jwks");
    let tokens = TokenKeys::load_or_create(&tokens, Arc::clone(sealer))?;
    Ok((authority, Arc::new(tokens)))
}

fn ca_file(data_dir: &Path) -> PathBuf {
    data_dir.join("tls/ca.pem")
}

/// Page tokens need not outlive the daemon: a client begins its list again.
fn page_secret() -> Result<[u8; 32]> {
    let mut secret = [0; 32];
    aws_lc_rs::rand::fill(&mut secret)
        .ok()
        .context("no randomness")?;
    Ok(secret)
}

/// Tells other commands and the person at the screen where everything is.
async fn announce(app: &App, front: &Front, vmm: &str) -> Result<()> {
    let (api, ingress) = (front.api.addr, front.ingress.addr);
    let data_dir = &app.config.data_dir;
    let file = DaemonFile {
        pid: std::process::id(),
        api_addr: api,
        ingress_addr: ingress,
        connect_addr: front.connect.as_ref().map(|listener| listener.addr),
        region: app.config.region.clone(),
        account: app.config.account.clone(),
        sealing_key_file: app.config.secrets.key_file.clone(),
        ca_file: ca_file(data_dir),
    };
    file.write(data_dir)?;
    let data = data_dir.display();
    let domain = &app.config.endpoint_domain;
    let port = app.config.endpoint_port.unwrap_or_else(|| ingress.port());
    let ca = ca_file(data_dir);
    eprintln!(
        "dormouse {version} is ready ({vmm})\n\n  \
         control API and S3   http://{api}\n  \
         endpoints            https://<endpoint>.{domain}:{port}  (listening on {ingress})\n  \
         CA certificate       {ca}\n  \
         data directory       {data}\n\n  \
         for AWS tools        eval \"$(dormouse env --data-dir {data})\"\n  \
         build logs           dormouse logs IMAGE --data-dir {data}\n  \
         stop                 Ctrl-C; microVMs keep running and the next start finds them\n",
        version = env!("CARGO_PKG_VERSION"),
        ca = ca.display(),
    );
    tracing::info!(%api, %ingress, vmm, "ready");
    Ok(())
}
