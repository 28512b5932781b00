//! The daemon is killed in the middle of builds and deletions, and the next one finishes them.

use super::lab::{Lab, ONE, World, image_path, slow, version_path};
use serde_json::{Value, json};
use std::time::Duration;

/// Lets the daemon's other tasks take so many turns.
async fn turns(number: usize) {
    for _ in 0..number {
        tokio::task::yield_now().await;
    }
}

async fn delete(lab: &Lab, path: &str) {
    lab.call(ONE, "DELETE", path, Value::Null).await.ok();
}

#[test]
fn a_kill_in_the_middle_of_a_build_delays_it() {
    for seconds in [0, 1, 5, 40, 51] {
        let world = World::new("");
        world.day(async |lab| {
            lab.create(ONE, "app", slow(ONE)).await.ok();
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        });
        world.day(async |lab| {
            lab.until_image(ONE, "app", "CREATED").await;
            lab.running(ONE, "app", json!({})).await;
        });
        assert_eq!(world.build_dirs().len(), 1);
    }
}

#[test]
fn a_kill_at_any_point_of_an_images_deletion_delays_it() {
    let world = World::new("");
    for number in 0..40 {
        let name = format!("app-{number}");
        let path = image_path(ONE, &name);
        world.day(async |lab| {
            lab.built(ONE, &name).await;
            lab.updated(ONE, &name).await;
            delete(&lab, &path).await;
            turns(number).await;
        });
        world.day(async |lab| {
            lab.until_gone(ONE, &path).await;
            lab.create(ONE, &name, json!({"clientToken": "t"}))
                .await
                .ok();
            lab.until_image(ONE, &name, "CREATED").await;
            delete(&lab, &path).await;
            lab.until_gone(ONE, &path).await;
        });
        assert_eq!(world.build_dirs(), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn a_kill_at_any_point_of_a_versions_deletion_delays_it() {
    let world = World::new("");
    for number in 0..30 {
        let name = format!("app-{number}");
        let path = version_path(ONE, &name, "1.0");
        let vm = world.day(async |lab| {
            lab.built(ONE, &name).await;
            let vm = lab.running(ONE, &name, json!({})).await;
            lab.updated(ONE, &name).await;
            delete(&lab, &path).await;
            turns(number).await;
            vm
        });
        world.day(async |lab| {
            lab.until_gone(ONE, &path).await;
            lab.until_image(ONE, &name, "UPDATED").await;
            // The snapshot of the deleted version still serves its MicroVM.
            for (action, state) in [("suspend", "SUSPENDED"), ("resume", "RUNNING")] {
                let path = format!("/2025-09-09/microvms/{vm}/{action}");
                lab.call(ONE, "POST", &path, Value::Null).await.ok();
                lab.until_vm(ONE, &vm, state).await;
            }
            lab.terminate(ONE, &vm).await;
            let whole = image_path(ONE, &name);
            delete(&lab, &whole).await;
            lab.until_gone(ONE, &whole).await;
            tokio::time::sleep(Duration::from_secs(30)).await;
        });
        assert_eq!(
            world.build_dirs(),
            Vec::<std::path::PathBuf>::new(),
            "{number}"
        );
    }
}

#[test]
fn a_kill_while_a_build_is_called_off_leaves_no_machine() {
    for number in 0..10 {
        let world = World::new("");
        let path = image_path(ONE, "app");
        world.day(async |lab| {
            lab.create(ONE, "app", slow(ONE)).await.ok();
            tokio::time::sleep(Duration::from_secs(5)).await;
            delete(&lab, &format!("{path}?dormouse-cancel=true")).await;
            turns(number).await;
        });
        world.day(async |lab| {
            lab.until_gone(ONE, &path).await;
        });
        assert_eq!(world.fake.machines(), 0);
        assert_eq!(world.build_dirs(), Vec::<std::path::PathBuf>::new());
    }
}
