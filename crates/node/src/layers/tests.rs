use super::*;
use crate::disk::create_overlay;
use crate::layout::Layout;
use dormouse_core::{BuildId, MicrovmId};
use std::time::Duration;
use tempfile::TempDir;

const HOUR: Duration = Duration::from_secs(3600);
const EVERYTHING: Bounds = Bounds {
    keep_bytes: 0,
    older_than: Duration::ZERO,
};

/// A data directory with real chains: a base disk, layers over it, golden disks and VMs over those.
struct Lab {
    _dir: TempDir,
    layout: Layout,
    cache: Arc<LayerCache>,
    base: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        layout.create().unwrap();
        let base = layout.images().join("base.ext4");
        File::create(&base).unwrap().set_len(1 << 20).unwrap();
        let cache = Arc::new(LayerCache::new(&layout.layers()));
        Self {
            _dir: dir,
            layout,
            cache,
            base,
        }
    }

    fn build(&self) -> Layers {
        self.cache.for_build(&account("000000000000"))
    }

    /// Makes a chain of published layers from the base on, and answers their disks.
    async fn chain(&self, keys: &[&str]) -> Vec<PathBuf> {
        let build = self.build();
        let mut below = self.base.clone();
        let mut disks = Vec::new();
        for key in keys {
            below = match build.find(key).await {
                Some(disk) => disk,
                None => {
                    let layer = build.new_disk();
                    create_overlay(&below, &layer.path).await.unwrap();
                    build.publish(key, &layer).await.unwrap();
                    layer.path
                }
            };
            disks.push(below.clone());
        }
        disks
    }

    async fn golden(&self, below: &Path) -> PathBuf {
        let dir = self.layout.build(&BuildId::new(Uuid::new_v4()));
        std::fs::create_dir_all(dir.path()).unwrap();
        create_overlay(below, &dir.disk()).await.unwrap();
        dir.disk()
    }

    async fn vm(&self, below: &Path) -> PathBuf {
        let dir = self.layout.vm(&MicrovmId::new(Uuid::new_v4()));
        std::fs::create_dir_all(dir.path()).unwrap();
        create_overlay(below, &dir.disk()).await.unwrap();
        dir.disk()
    }

    fn age(&self, key: &str, by: Duration) {
        let entry = self.build().entry(key);
        let file = File::options().write(true).open(entry).unwrap();
        file.set_modified(SystemTime::now() - by).unwrap();
    }

    async fn collect(&self, bounds: Bounds) -> Collected {
        self.cache.collect(&self.layout, bounds).await.unwrap()
    }

    async fn finds(&self, key: &str) -> bool {
        self.build().find(key).await.is_some()
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.layout.layers()).unwrap().count()
    }
}

fn account(text: &str) -> AccountId {
    AccountId::parse(text).unwrap()
}

#[tokio::test]
async fn what_a_golden_snapshot_lies_over_stays_with_all_below() {
    let lab = Lab::new();
    let a = lab.chain(&["a1", "a2", "a3"]).await;
    lab.chain(&["a1", "b2"]).await;
    let golden = lab.golden(&a[1]).await;
    assert_eq!(lab.collect(EVERYTHING).await.disks, 2);
    assert!(lab.finds("a1").await && lab.finds("a2").await);
    assert!(!lab.finds("a3").await && !lab.finds("b2").await);
    assert_eq!(lab.collect(EVERYTHING).await, Collected::default());

    std::fs::remove_dir_all(golden.parent().unwrap()).unwrap();
    assert_eq!(lab.collect(EVERYTHING).await.disks, 2);
    assert_eq!(lab.files(), 0);
}

#[tokio::test]
async fn what_a_microvm_lies_over_stays() {
    let lab = Lab::new();
    let a = lab.chain(&["a1", "a2"]).await;
    let golden = lab.golden(&a[1]).await;
    lab.vm(&golden).await;
    let direct = lab.chain(&["b1"]).await;
    lab.vm(&direct[0]).await;
    assert_eq!(lab.collect(EVERYTHING).await, Collected::default());
    assert!(a.iter().chain(&direct).all(|disk| disk.exists()));
}

#[tokio::test]
async fn the_least_recently_used_goes_first_and_never_before_what_lies_over_it() {
    let lab = Lab::new();
    lab.chain(&["a1", "a2"]).await;
    lab.chain(&["b1", "b2"]).await;
    let bytes = lab.cache.usage(&lab.layout).await.unwrap().bytes / 4;
    assert!(bytes > 0);
    lab.age("a1", 9 * HOUR);
    lab.age("a2", 3 * HOUR);
    lab.age("b1", 8 * HOUR);
    lab.age("b2", 4 * HOUR);
    let keep = |layers: u64| Bounds {
        keep_bytes: layers * bytes,
        older_than: Duration::ZERO,
    };
    for (layers, gone) in [(4, None), (3, Some("b2")), (2, Some("b1")), (1, Some("a2"))] {
        let collected = lab.collect(keep(layers)).await;
        assert_eq!(collected.disks, usize::from(gone.is_some()), "{layers}");
        for key in ["a1", "a2", "b1", "b2"] {
            let entry = lab.build().entry(key);
            assert!(gone != Some(key) || !entry.exists(), "{key}");
        }
    }
    assert!(lab.finds("a1").await);
}

#[tokio::test]
async fn age_keeps_what_was_used_lately_and_what_lies_below_it() {
    let lab = Lab::new();
    lab.chain(&["a1", "a2"]).await;
    lab.age("a1", 9 * HOUR);
    lab.age("a2", HOUR);
    let old = Bounds {
        keep_bytes: 0,
        older_than: 2 * HOUR,
    };
    assert_eq!(lab.collect(old).await, Collected::default());
    lab.age("a2", 3 * HOUR);
    assert!(lab.finds("a1").await);
    assert_eq!(lab.collect(old).await.disks, 1, "a1 was just used");
    assert!(lab.finds("a1").await && !lab.finds("a2").await);
}

#[tokio::test]
async fn what_a_build_has_found_or_made_stays_until_the_build_ends() {
    let lab = Lab::new();
    lab.chain(&["a1", "a2"]).await;
    let build = lab.build();
    let found = build.find("a2").await.unwrap();
    let made = build.new_disk();
    create_overlay(&found, &made.path).await.unwrap();
    assert_eq!(lab.collect(EVERYTHING).await, Collected::default());
    drop(build);
    tokio::time::timeout(HOUR, lab.cache.released())
        .await
        .unwrap();
    assert_eq!(lab.collect(EVERYTHING).await.disks, 3);
    assert_eq!(lab.files(), 0);
}

#[tokio::test]
async fn what_a_crash_left_goes_whatever_the_bounds() {
    let lab = Lab::new();
    let a = lab.chain(&["a1"]).await;
    let orphan = lab
        .layout
        .layers()
        .join(format!("{}.qcow2", Uuid::new_v4()));
    create_overlay(&a[0], &orphan).await.unwrap();
    let torn = lab
        .layout
        .layers()
        .join(format!("{}.qcow2", Uuid::new_v4()));
    std::fs::write(&torn, b"QFI").unwrap();
    std::fs::write(
        lab.layout.layers().join(format!("{}.tmp", Uuid::new_v4())),
        b"{",
    )
    .unwrap();
    let stale = lab.build().entry("stale");
    let entry = Entry {
        disk: Uuid::new_v4(),
    };
    std::fs::write(&stale, serde_json::to_vec(&entry).unwrap()).unwrap();
    let lax = Bounds {
        keep_bytes: u64::MAX,
        older_than: 1000 * HOUR,
    };
    assert_eq!(lab.collect(lax).await.disks, 2);
    assert!(lab.finds("a1").await);
    assert_eq!(lab.files(), 2, "a1's disk and its name");
}

#[tokio::test]
async fn layers_that_lie_over_each_other_in_a_circle_go() {
    let lab = Lab::new();
    let a = lab.chain(&["a1", "a2"]).await;
    std::fs::write(&a[0], crate::disk::head_that_says(&a[1])).unwrap();
    assert_eq!(lab.collect(EVERYTHING).await.disks, 2);
    assert_eq!(lab.files(), 0);
}

#[tokio::test]
async fn a_layer_keeps_no_other_by_a_name_that_is_not_the_others() {
    let lab = Lab::new();
    let (a, b) = (lab.chain(&["a1"]).await, lab.chain(&["b1"]).await);
    let elsewhere = Path::new("/elsewhere").join(b[0].file_name().unwrap());
    std::fs::write(&a[0], crate::disk::head_that_says(&elsewhere)).unwrap();
    lab.golden(&a[0]).await;
    assert_eq!(lab.collect(EVERYTHING).await.disks, 1);
    assert!(lab.finds("a1").await && !lab.finds("b1").await);
}

#[tokio::test]
async fn an_account_does_not_see_the_layers_of_another() {
    let lab = Lab::new();
    lab.chain(&["a1"]).await;
    let other = lab.cache.for_build(&account("111111111111"));
    assert_eq!(other.find("a1").await, None);
    assert!(lab.finds("a1").await);
}

#[tokio::test]
async fn usage_tells_what_could_go() {
    let lab = Lab::new();
    let a = lab.chain(&["a1", "a2", "a3"]).await;
    lab.golden(&a[0]).await;
    let usage = lab.cache.usage(&lab.layout).await.unwrap();
    assert_eq!(usage.disks, 3);
    assert_eq!(usage.reclaimable_bytes, usage.bytes / 3 * 2);
    let collected = lab.collect(EVERYTHING).await;
    assert_eq!(collected.bytes, usage.reclaimable_bytes);
}

/// Builds that come and go while collections run: what a build has in its hands is always there, and
/// the chain below what it leaves on disk is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn builds_and_collections_do_not_harm_each_other() {
    let lab = Arc::new(Lab::new());
    let builders = (0..4).map(|builder| {
        let lab = Arc::clone(&lab);
        tokio::spawn(async move {
            for round in 0..40 {
                let build = lab.build();
                let mut below = lab.base.clone();
                for step in 0..3 {
                    let key = format!("{}-{step}", (builder + round) % 5);
                    below = match build.find(&key).await {
                        Some(disk) => disk,
                        None => {
                            let layer = build.new_disk();
                            create_overlay(&below, &layer.path).await.unwrap();
                            build.publish(&key, &layer).await.unwrap();
                            layer.path
                        }
                    };
                }
                let golden = lab.golden(&below).await;
                drop(build);
                tokio::time::sleep(Duration::from_millis(round % 3)).await;
                let mut next = crate::disk::backing_blocking(&golden).unwrap();
                while let Some(disk) = next.take_if(|disk| disk.extension().unwrap() == "qcow2") {
                    next = crate::disk::backing_blocking(&disk).unwrap();
                }
                assert_eq!(next, Some(lab.base.clone()));
                std::fs::remove_dir_all(golden.parent().unwrap()).unwrap();
            }
        })
    });
    let builders: Vec<_> = builders.collect();
    while !builders.iter().all(tokio::task::JoinHandle::is_finished) {
        lab.collect(EVERYTHING).await;
    }
    for builder in builders {
        builder.await.unwrap();
    }
    lab.collect(EVERYTHING).await;
    assert_eq!(lab.files(), 0);
}

#[tokio::test]
async fn a_pulled_image_goes_when_it_is_idle_and_nothing_lies_over_it() {
    let lab = Lab::new();
    let disks = lab.layout.images().join("disks");
    std::fs::create_dir_all(&disks).unwrap();
    let disk = |name: &str| {
        let disk = disks.join(format!("{name}.raw"));
        let file = File::create(&disk).unwrap();
        file.set_len(1 << 20).unwrap();
        file.set_modified(SystemTime::now() - 2 * HOUR).unwrap();
        disk
    };
    let (idle, below_layer, below_golden, used) = (disk("aa"), disk("bb"), disk("cc"), disk("dd"));
    let layer = lab.build().new_disk();
    create_overlay(&below_layer, &layer.path).await.unwrap();
    lab.golden(&below_golden).await;
    let file = File::open(&used).unwrap();
    file.set_modified(SystemTime::now()).unwrap();
    let collected = lab.cache.collect_bases(&lab.layout, HOUR).await.unwrap();
    assert_eq!(collected.disks, 1);
    let left = [idle, below_layer, below_golden, used].map(|disk| disk.exists());
    assert_eq!(left, [false, true, true, true]);
}
