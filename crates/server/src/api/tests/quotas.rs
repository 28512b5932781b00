//! What one account may have and do.

use super::lab::{ONE, TWO, World, slow};
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn an_account_has_so_many_images_and_an_image_so_many_versions() {
    World::new("[quotas]\nimages = 2\nversions_per_image = 2").day(async |lab| {
        lab.built(ONE, "a").await;
        lab.built(ONE, "b").await;
        let refused = lab.create(ONE, "c", json!({})).await;
        assert_eq!(refused.status, 402);
        for member in ["quotaCode", "resourceId", "resourceType", "serviceCode"] {
            assert_eq!(refused.body.get(member), Some(&Value::Null), "{member}");
        }
        let refused = refused.refusal();
        assert!(
            refused.starts_with("402 ServiceQuotaExceededException"),
            "{refused}"
        );
        lab.built(TWO, "c").await;
        lab.updated(ONE, "a").await;
        let refused = lab.update(ONE, "a", json!({})).await.refusal();
        assert!(
            refused.starts_with("402 ServiceQuotaExceededException"),
            "{refused}"
        );
        assert_eq!(
            lab.image(ONE, "a").await["state"],
            "UPDATED",
            "nothing has begun"
        );
        // A deleted version makes room.
        let path = super::lab::version_path(ONE, "a", "1.0");
        lab.call(ONE, "DELETE", &path, Value::Null).await.ok();
        lab.until_gone(ONE, &path).await;
        lab.updated(ONE, "a").await;
    });
}

#[test]
fn an_account_has_so_many_builds_at_once() {
    let config = "[quotas]\nconcurrent_builds = 2\n[build]\nconcurrency = 1";
    World::new(config).day(async |lab| {
        for name in ["a", "b"] {
            lab.create(ONE, name, slow(ONE)).await.ok();
        }
        assert_eq!(
            lab.create(ONE, "c", json!({})).await.refusal(),
            "402 ServiceQuotaExceededException: The maximum number of concurrent builds has been reached."
        );
        // Another account's build does not wait for all of them.
        lab.create(TWO, "x", json!({})).await.ok();
        lab.until_image(TWO, "x", "CREATED").await;
        assert_eq!(lab.image(ONE, "b").await["state"], "CREATING");
        lab.until_image(ONE, "b", "CREATED").await;
        lab.built(ONE, "c").await;
    });
}

#[test]
fn an_account_has_so_much_memory_running_and_asleep() {
    const FULL: &str = "402 ServiceQuotaExceededException: The base maximum allocated memory limit has been \
                        reached for this account.";
    let world = World::new("[quotas]\nmemory_mib = 1024");
    let vm = world.day(async |lab| {
        lab.built(ONE, "app").await;
        let first = lab.running(ONE, "app", json!({})).await;
        lab.running(ONE, "app", json!({})).await;
        let suspend = format!("/2025-09-09/microvms/{first}/suspend");
        lab.call(ONE, "POST", &suspend, Value::Null).await.ok();
        lab.until_vm(ONE, &first, "SUSPENDED").await;
        assert_eq!(lab.run(ONE, "app", json!({})).await.refusal(), FULL);
        lab.built(TWO, "app").await;
        lab.running(TWO, "app", json!({})).await;
        first
    });
    // The next daemon counts what it finds.
    world.day(async |lab| {
        assert_eq!(lab.run(ONE, "app", json!({})).await.refusal(), FULL);
        lab.terminate(ONE, &vm).await;
        let many = [(); 5].map(|()| lab.run(ONE, "app", json!({})));
        let answers = futures_util::future::join_all(many).await;
        let launched = answers.iter().filter(|a| a.status.is_success()).count();
        assert_eq!(launched, 1, "one place, however many ask at once");
    });
}

#[test]
fn calls_beyond_the_rate_are_throttled() {
    let config = "[quotas.calls.ListMicrovms]\nper_second = 1\nburst = 3";
    World::new(config).day(async |lab| {
        let list = async |account: &str| lab.get(account, "/2025-09-09/microvms").await;
        for _ in 0..3 {
            list(ONE).await.ok();
        }
        let refused = list(ONE).await;
        assert_eq!(refused.status, 429);
        assert_eq!(refused.body.get("quotaCode"), Some(&Value::Null));
        assert_eq!(refused.body.get("serviceCode"), Some(&Value::Null));
        assert_eq!(refused.refusal(), "429 ThrottlingException: Rate exceeded");
        list(TWO).await.ok();
        lab.get(ONE, "/2025-09-09/microvm-images").await.ok();
        // The rate goes by the wall clock, which does not jump.
        std::thread::sleep(Duration::from_millis(1100));
        list(ONE).await.ok();
    });
}

#[test]
fn a_host_without_room_refuses_launches_and_nothing_else() {
    for key in ["disk_free_min_bytes", "memory_free_min_bytes"] {
        let most = i64::MAX;
        World::new(&format!("[capacity]\n{key} = {most}")).day(async |lab| {
            lab.built(ONE, "app").await;
            assert_eq!(
                lab.run(ONE, "app", json!({})).await.refusal(),
                "500 InsufficientCapacityException: There is not enough capacity to run the MicroVM. Try again later."
            );
            let nobody = lab.run(ONE, "none", json!({})).await.refusal();
            assert!(!nobody.contains("Capacity"), "{nobody}");
            lab.updated(ONE, "app").await;
        });
    }
}
