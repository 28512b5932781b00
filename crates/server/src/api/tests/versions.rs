//! Versions and builds of an image.

use super::lab::{Lab, ONE, World, arn, bad, image_path, slow, version_path};
use serde_json::{Value, json};
use std::time::Duration;

async fn set_status(lab: &Lab, version: &str, status: &str) -> super::lab::Answer {
    let path = version_path(ONE, "app", version);
    lab.call(ONE, "PATCH", &path, json!({"status": status}))
        .await
}

async fn delete(lab: &Lab, version: &str) -> super::lab::Answer {
    let path = version_path(ONE, "app", version);
    lab.call(ONE, "DELETE", &path, Value::Null).await
}

/// Which version a MicroVM gets that asks for `wanted`.
async fn launched(lab: &Lab, wanted: Option<&str>) -> Result<String, String> {
    let more = wanted.map_or_else(|| json!({}), |version| json!({"imageVersion": version}));
    let answer = lab.run(ONE, "app", more).await;
    match answer.status.is_success() {
        true => Ok(answer.ok()["imageVersion"].as_str().unwrap().to_owned()),
        false => Err(answer.refusal()),
    }
}

fn none(version: &str) -> String {
    format!(
        "404 ResourceNotFoundException: No active version found for MicroVM image {}{version}",
        arn(ONE, "app")
    )
}

#[test]
fn a_launch_takes_the_newest_active_version_or_the_one_it_names() {
    World::new("").day(async |lab| {
        assert_eq!(launched(&lab, None).await, Err(none("")));
        lab.create(ONE, "app", slow(ONE)).await.ok();
        assert_eq!(launched(&lab, None).await, Err(none("")), "not built yet");
        lab.until_image(ONE, "app", "CREATED").await;
        lab.updated(ONE, "app").await;
        assert_eq!(launched(&lab, None).await.as_deref(), Ok("2.0"));
        for spelling in ["1", "1.0"] {
            assert_eq!(launched(&lab, Some(spelling)).await.as_deref(), Ok("1.0"));
        }
        for unknown in ["3", "3.0", "01", "latest"] {
            let text = none(&format!(" and version {unknown}"));
            assert_eq!(launched(&lab, Some(unknown)).await, Err(text));
        }
        let off = set_status(&lab, "2.0", "INACTIVE").await.ok();
        assert_eq!(
            (&off["status"], &off["state"]),
            (&json!("INACTIVE"), &json!("SUCCESSFUL"))
        );
        assert_eq!(
            lab.image(ONE, "app").await["latestActiveImageVersion"],
            "1.0"
        );
        assert_eq!(launched(&lab, None).await.as_deref(), Ok("1.0"));
        assert_eq!(launched(&lab, Some("2")).await, Err(none(" and version 2")));
        set_status(&lab, "1", "INACTIVE").await.ok();
        assert_eq!(
            lab.image(ONE, "app").await["latestActiveImageVersion"],
            Value::Null
        );
        assert_eq!(launched(&lab, None).await, Err(none("")));
        set_status(&lab, "2", "ACTIVE").await.ok();
        assert_eq!(launched(&lab, None).await.as_deref(), Ok("2.0"));
    });
}

#[test]
fn only_a_built_version_is_activated() {
    World::new("").day(async |lab| {
        lab.create(ONE, "app", bad(ONE)).await.ok();
        lab.until_image(ONE, "app", "CREATE_FAILED").await;
        let refused = set_status(&lab, "1.0", "ACTIVE").await.refusal();
        assert!(refused.starts_with("400 ValidationException"), "{refused}");
        assert!(refused.contains("FAILED"), "{refused}");
        set_status(&lab, "1.0", "INACTIVE").await.ok();
        let wrong = set_status(&lab, "1.0", "ON").await.refusal();
        assert!(wrong.contains("1 validation error detected"), "{wrong}");
        let unknown = set_status(&lab, "7", "ACTIVE").await.refusal();
        assert_eq!(
            unknown,
            format!(
                "404 ResourceNotFoundException: MicroVMImage not found for MicroVMImage: {}, Version: 7",
                arn(ONE, "app")
            )
        );
    });
}

#[test]
fn a_deleted_version_is_gone_and_its_number_never_comes_back() {
    let world = World::new("");
    world.day(async |lab| {
        lab.built(ONE, "app").await;
        let last = delete(&lab, "1.0").await.refusal();
        assert_eq!(
            last,
            "400 ValidationException: This is the last version. Please delete the entire image"
        );
        lab.updated(ONE, "app").await;
        let answer = delete(&lab, "2").await;
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.ok(),
            json!({"imageIdentifier": arn(ONE, "app"), "imageVersion": "2.0", "state": "DELETING"})
        );
        // The image is busy while the files go.
        let image = lab.image(ONE, "app").await;
        assert_eq!(image["state"], "UPDATING");
        assert_eq!(image["latestActiveImageVersion"], "1.0");
        let version = lab.get(ONE, &version_path(ONE, "app", "2.0")).await.ok();
        assert_eq!(
            (&version["state"], &version["status"]),
            (&json!("DELETING"), &json!("INACTIVE"))
        );
        delete(&lab, "2.0").await.ok();
        let gone = lab.until_gone(ONE, &version_path(ONE, "app", "2.0")).await;
        assert!(
            gone.ends_with(&format!("{}, Version: 2.0", arn(ONE, "app"))),
            "{gone}"
        );
        lab.until_image(ONE, "app", "UPDATED").await;
        assert_eq!(world.build_dirs().len(), 1);
        assert_eq!(launched(&lab, None).await.as_deref(), Ok("1.0"));
        let again = delete(&lab, "2.0").await.ok();
        assert_eq!(
            again["state"], "DELETED",
            "what was asked for is so already"
        );
        assert_eq!(delete(&lab, "3.0").await.status, 404);
        lab.updated(ONE, "app").await;
        assert_eq!(
            lab.image(ONE, "app").await["latestActiveImageVersion"],
            "3.0"
        );
    });
}

#[test]
fn microvms_of_a_deleted_version_keep_their_files_until_they_end() {
    let world = World::new("");
    world.day(async |lab| {
        lab.built(ONE, "app").await;
        let vm = lab.running(ONE, "app", json!({})).await;
        lab.updated(ONE, "app").await;
        delete(&lab, "1.0").await.ok();
        lab.until_gone(ONE, &version_path(ONE, "app", "1.0")).await;
        lab.until_image(ONE, "app", "UPDATED").await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(world.build_dirs().len(), 2, "the golden snapshot stays");
        // A resume reads the golden memory.
        for (action, state) in [("suspend", "SUSPENDED"), ("resume", "RUNNING")] {
            let path = format!("/2025-09-09/microvms/{vm}/{action}");
            lab.call(ONE, "POST", &path, Value::Null).await.ok();
            lab.until_vm(ONE, &vm, state).await;
        }
        let path = image_path(ONE, "app");
        let refused = lab.call(ONE, "DELETE", &path, Value::Null).await.refusal();
        assert!(refused.contains("running microvms"), "{refused}");
        lab.terminate(ONE, &vm).await;
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if world.build_dirs().len() == 1 {
                break;
            }
        }
        assert_eq!(
            world.build_dirs().len(),
            1,
            "and goes with its last microvm"
        );
    });
}

#[test]
fn versions_are_listed_newest_first_in_pages() {
    World::new("").day(async |lab| {
        lab.built(ONE, "app").await;
        lab.updated(ONE, "app").await;
        lab.updated(ONE, "app").await;
        let path = format!("{}/versions", image_path(ONE, "app"));
        let page = lab.get(ONE, &format!("{path}?maxResults=2")).await.ok();
        let numbers = |page: &Value| -> Vec<String> {
            let items = page["items"].as_array().unwrap().iter();
            items
                .map(|item| item["imageVersion"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(numbers(&page), ["3.0", "2.0"]);
        assert_eq!(page["items"][0]["tags"], Value::Null);
        let bucket = page["items"][0]["versionStateTimeBucket"].as_str().unwrap();
        assert!(bucket.starts_with("SUCCESSFUL#"), "{bucket}");
        let token = page["nextToken"].as_str().unwrap();
        let rest = lab
            .get(ONE, &format!("{path}?nextToken={token}"))
            .await
            .ok();
        assert_eq!(numbers(&rest), ["1.0"]);
        let other = format!("/2025-09-09/microvm-images?nextToken={token}");
        assert_eq!(
            lab.get(ONE, &other).await.status,
            400,
            "a token is for its list"
        );
        let absent = format!("{}/versions", image_path(ONE, "absent"));
        assert_eq!(lab.get(ONE, &absent).await.status, 404);
    });
}

#[test]
fn builds_say_what_they_made_or_why_they_failed() {
    World::new("").day(async |lab| {
        lab.built(ONE, "app").await;
        lab.update(ONE, "app", bad(ONE)).await.ok();
        lab.until_image(ONE, "app", "UPDATE_FAILED").await;
        let list = async |version: &str, more: &str| {
            let path = format!("{}/builds{more}", version_path(ONE, "app", version));
            lab.get(ONE, &path).await
        };
        let built = list("1", "").await.ok();
        let item = &built["items"][0];
        assert_eq!(
            (&item["buildState"], &item["stateReason"]),
            (&json!("SUCCESSFUL"), &Value::Null)
        );
        assert_eq!(item.get("snapshotBuild"), None, "sizes are in Get alone");
        let build_path = |version: &str, item: &Value| {
            let id = item["buildId"].as_str().unwrap();
            format!("{}/builds/{id}", version_path(ONE, "app", version))
        };
        let build = lab.get(ONE, &build_path("1.0", item)).await.ok();
        assert!(
            build["snapshotBuild"]["memorySnapshotSizeInBytes"]
                .as_i64()
                .unwrap()
                > 0
        );
        let failed = list("2.0", "").await.ok();
        let item = &failed["items"][0];
        assert_eq!(item["buildState"], "FAILED");
        let reason = item["stateReason"].as_str().unwrap();
        assert!(
            reason.contains("The container image build failed."),
            "{reason}"
        );
        let build = lab.get(ONE, &build_path("2.0", item)).await.ok();
        assert_eq!(build["snapshotBuild"], Value::Null);
        // A build is of its version alone.
        let crossed = lab.get(ONE, &build_path("1.0", item)).await;
        assert_eq!(crossed.status, 404);
        for (filter, found) in [
            (
                format!("?architecture={}", item["architecture"].as_str().unwrap()),
                1,
            ),
            ("?chipsetGeneration=99".to_owned(), 0),
        ] {
            let items = list("1.0", &filter).await.ok()["items"]
                .as_array()
                .unwrap()
                .len();
            assert_eq!(items, found, "{filter}");
        }
        assert_eq!(list("9", "").await.status, 404);
    });
}

#[test]
fn the_build_of_one_version_is_called_off() {
    let world = World::new("");
    world.day(async |lab| {
        lab.built(ONE, "app").await;
        lab.update(ONE, "app", slow(ONE)).await.ok();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(world.fake.machines(), 1);
        let path = version_path(ONE, "app", "2.0");
        let cancel = format!("{path}?dormouse-cancel=true");
        lab.call(ONE, "DELETE", &cancel, Value::Null).await.ok();
        lab.until_gone(ONE, &path).await;
        lab.until_image(ONE, "app", "UPDATED").await;
        assert_eq!(world.fake.machines(), 0);
        assert_eq!(world.build_dirs().len(), 1);
        lab.updated(ONE, "app").await;
        assert_eq!(
            lab.image(ONE, "app").await["latestActiveImageVersion"],
            "3.0"
        );
    });
}
