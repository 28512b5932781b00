//! Images from creation to deletion.

use super::lab::{
    BASE_ARN, ONE, World, arn, bad, image_path, merged, settings, slow, version_path,
};
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn an_image_is_created_built_and_read() {
    World::new("").day(async |lab| {
        let tags = json!({"team": "a"});
        let created = lab.create(ONE, "app", json!({"tags": tags})).await;
        assert_eq!(created.status, 201);
        let body = created.ok();
        for (member, value) in [
            ("additionalOsCapabilities", Value::Null),
            ("baseImageArn", json!(BASE_ARN)),
            ("baseImageVersion", json!("1.0")),
            ("buildPhaseOverrides", Value::Null),
            ("cpuConfigurations", Value::Null),
            ("description", Value::Null),
            ("environmentVariables", Value::Null),
            ("hooks", Value::Null),
            ("imageArn", json!(arn(ONE, "app"))),
            ("imageVersion", json!("1.0")),
            ("latestActiveImageVersion", Value::Null),
            ("latestFailedImageVersion", Value::Null),
            ("logging", Value::Null),
            ("name", json!("app")),
            ("resources", json!([{"minimumMemoryInMiB": 512}])),
            ("roleConfiguration", Value::Null),
            ("state", json!("CREATING")),
            ("tags", Value::Null),
        ] {
            assert_eq!(body.get(member), Some(&value), "{member}");
        }
        assert!(
            body["egressNetworkConnectors"][0]
                .as_str()
                .unwrap()
                .ends_with(":INTERNET_EGRESS")
        );
        let image = lab.until_image(ONE, "app", "CREATED").await;
        assert_eq!(image["latestActiveImageVersion"], "1.0");
        assert_eq!(image["tags"], tags);
        let listed = lab.get(ONE, "/2025-09-09/microvm-images").await.ok();
        assert_eq!(listed["items"][0]["name"], "app");
        assert_eq!(listed["items"][0].get("tags"), None);
        assert_eq!(listed.get("nextToken"), Some(&Value::Null));
    });
}

#[test]
fn a_name_is_taken_once() {
    World::new("").day(async |lab| {
        lab.create(ONE, "app", json!({})).await.ok();
        let again = lab.create(ONE, "app", json!({})).await.refusal();
        assert_eq!(
            again,
            "400 ValidationException: A MicroVM image with the name 'app' already exists in this account"
        );
    });
}

#[test]
fn what_is_wrong_with_a_request_is_told_before_anything_is_made() {
    World::new("").day(async |lab| {
        let sizes = "[512, 1024, 2048, 4096, 8192]";
        for (more, text) in [
            (
                json!({"resources": [{"minimumMemoryInMiB": 700}]}),
                format!(
                    "400 ValidationException: The requested memory size of 700 MiB is not supported by base \
                     MicroVM image {BASE_ARN}. Supported memory sizes in MiB are: {sizes}."
                ),
            ),
            (
                json!({"codeArtifact": {"uri": "https://bucket/key"}}),
                "400 ValidationException: CodeArtifact URI must be a valid S3 URI in the format: \
                 s3://<bucket>/<key>"
                    .to_owned(),
            ),
            (
                json!({"baseImageVersion": "999"}),
                format!(
                    "400 ValidationException: No managed MicroVM Image with arn {BASE_ARN} and version 999 \
                     is available"
                ),
            ),
            (
                json!({"environmentVariables": {"AWS_REGION": "x"}}),
                "400 ValidationException: Environment variable key 'AWS_REGION' is reserved".to_owned(),
            ),
            (
                json!({"name": "bad name!"}),
                "400 ValidationException: 1 validation error detected: Value 'bad name!' at 'name' failed to \
                 satisfy constraint: Member must satisfy regular expression pattern: [a-zA-Z0-9-_]+"
                    .to_owned(),
            ),
        ] {
            assert_eq!(lab.create(ONE, "app", more).await.refusal(), text);
        }
        let path = "/2025-09-09/microvm-images";
        let three = lab.call(ONE, "POST", path, json!({"name": "n"})).await.refusal();
        assert_eq!(
            three,
            "400 ValidationException: 3 validation errors detected: Value null at 'baseImageArn' failed to \
             satisfy constraint: Member must not be null; Value null at 'codeArtifact' failed to satisfy \
             constraint: Member must not be null; Value null at 'buildRoleArn' failed to satisfy constraint: \
             Member must not be null"
        );
        assert_eq!(lab.get(ONE, path).await.ok()["items"], json!([]));
    });
}

#[test]
fn an_update_builds_the_next_version_and_inherits_nothing() {
    World::new("").day(async |lab| {
        let more = json!({"environmentVariables": {"A": "1"}, "description": "first"});
        lab.create(ONE, "app", more).await.ok();
        lab.until_image(ONE, "app", "CREATED").await;
        let updated = lab.update(ONE, "app", json!({})).await;
        assert_eq!(updated.status, 200);
        let body = updated.ok();
        assert_eq!(body["state"], "UPDATING");
        assert_eq!(body["imageVersion"], "2.0");
        assert_eq!(body["latestActiveImageVersion"], "1.0");
        assert_eq!(body["environmentVariables"], Value::Null);
        assert_eq!(body["description"], Value::Null);
        assert_eq!(body["resources"], json!([{"minimumMemoryInMiB": 2048}]));
        assert_eq!(body.get("tags"), None);
        let image = lab.until_image(ONE, "app", "UPDATED").await;
        assert_eq!(image["latestActiveImageVersion"], "2.0");
        let first = lab.get(ONE, &version_path(ONE, "app", "1.0")).await.ok();
        assert_eq!(first["description"], "first");
        assert_eq!(first["status"], "ACTIVE");
    });
}

#[test]
fn one_thing_at_a_time_happens_to_an_image() {
    const BUSY: &str = "409 ConflictException: MicroVM Image is already in state: UPDATING";
    World::new("").day(async |lab| {
        lab.built(ONE, "app").await;
        lab.update(ONE, "app", slow(ONE)).await.ok();
        assert_eq!(lab.update(ONE, "app", json!({})).await.refusal(), BUSY);
        let version = version_path(ONE, "app", "1.0");
        let inactive = json!({"status": "INACTIVE"});
        let off = lab.call(ONE, "PATCH", &version, inactive).await.refusal();
        assert_eq!(off, BUSY);
        let delete = lab.call(ONE, "DELETE", &version, Value::Null).await;
        assert_eq!(delete.refusal(), BUSY);
        let path = image_path(ONE, "app");
        let whole = lab.call(ONE, "DELETE", &path, Value::Null).await.refusal();
        assert_eq!(
            whole,
            format!(
                "400 ValidationException: Cannot delete MicroVM image in its current state: {}",
                arn(ONE, "app")
            )
        );
        // What was active still is, and launches.
        lab.running(ONE, "app", json!({})).await;
        lab.until_image(ONE, "app", "UPDATED").await;
        lab.update(ONE, "app", json!({})).await.ok();
    });
}

#[test]
fn a_failed_update_leaves_what_was_active() {
    World::new("").day(async |lab| {
        lab.built(ONE, "app").await;
        lab.update(ONE, "app", bad(ONE)).await.ok();
        let image = lab.until_image(ONE, "app", "UPDATE_FAILED").await;
        assert_eq!(image["latestActiveImageVersion"], "1.0");
        assert_eq!(image["latestFailedImageVersion"], "2.0");
        let failed = lab.get(ONE, &version_path(ONE, "app", "2.0")).await.ok();
        assert_eq!(
            (&failed["state"], &failed["status"]),
            (&json!("FAILED"), &json!("INACTIVE"))
        );
        assert_eq!(
            failed["stateReason"],
            Value::Null,
            "the reason is on the build"
        );
        let vm = lab.run(ONE, "app", json!({})).await.ok();
        assert_eq!(vm["imageVersion"], "1.0");
        lab.updated(ONE, "app").await;
        let vm = lab.run(ONE, "app", json!({})).await.ok();
        assert_eq!(vm["imageVersion"], "3.0", "numbers are never reused");
    });
}

#[test]
fn an_image_whose_first_build_failed_can_be_updated() {
    World::new("").day(async |lab| {
        lab.create(ONE, "app", bad(ONE)).await.ok();
        let image = lab.until_image(ONE, "app", "CREATE_FAILED").await;
        assert_eq!(image["latestFailedImageVersion"], "1.0");
        assert_eq!(image["latestActiveImageVersion"], Value::Null);
        lab.updated(ONE, "app").await;
        assert_eq!(
            lab.image(ONE, "app").await["latestActiveImageVersion"],
            "2.0"
        );
    });
}

#[test]
fn a_repeated_request_makes_one_image_and_one_version() {
    World::new("").day(async |lab| {
        let token = json!({"clientToken": "token-1"});
        let first = lab.create(ONE, "app", token.clone()).await.ok();
        let again = lab.create(ONE, "app", token.clone()).await.ok();
        assert_eq!(first["id"], again["id"]);
        let other = merged(token.clone(), json!({"description": "another"}));
        let refused = lab.create(ONE, "app", other).await.refusal();
        assert!(refused.starts_with("409 ConflictException"), "{refused}");
        lab.until_image(ONE, "app", "CREATED").await;

        let second = lab.update(ONE, "app", token.clone()).await.ok();
        assert_eq!(second["imageVersion"], "2.0");
        let again = lab.update(ONE, "app", token.clone()).await.ok();
        assert_eq!(again["imageVersion"], "2.0", "while it builds");
        lab.until_image(ONE, "app", "UPDATED").await;
        let again = lab.update(ONE, "app", token.clone()).await.ok();
        assert_eq!(again["imageVersion"], "2.0", "and afterwards");
        let next = lab
            .update(ONE, "app", json!({"clientToken": "token-2"}))
            .await;
        assert_eq!(next.ok()["imageVersion"], "3.0");
    });
}

#[test]
fn requests_at_the_same_moment_make_one_image() {
    World::new("").day(async |lab| {
        let token = json!({"clientToken": "token"});
        let (one, two) = tokio::join!(
            lab.create(ONE, "app", token.clone()),
            lab.create(ONE, "app", token.clone())
        );
        assert_eq!(one.ok()["id"], two.ok()["id"]);
        let (one, two) = tokio::join!(
            lab.create(ONE, "b", json!({})),
            lab.create(ONE, "b", json!({}))
        );
        let taken = |status: u16| status == 400;
        assert!(taken(one.status.as_u16()) != taken(two.status.as_u16()));
    });
}

#[test]
fn a_deleted_image_leaves_nothing_and_frees_its_name() {
    let world = World::new("");
    world.day(async |lab| {
        let token = json!({"clientToken": "token"});
        let created = lab.create(ONE, "app", token.clone()).await.ok();
        lab.until_image(ONE, "app", "CREATED").await;
        lab.updated(ONE, "app").await;
        assert_eq!(world.build_dirs().len(), 2);
        let path = image_path(ONE, "app");
        let deleted = lab.call(ONE, "DELETE", &path, Value::Null).await;
        assert_eq!(deleted.status, 200);
        let expected = json!({"imageIdentifier": arn(ONE, "app"), "state": "DELETING"});
        assert_eq!(deleted.ok(), expected);
        // The files go in the background; until then the name is taken and nothing is launched.
        assert_eq!(lab.image(ONE, "app").await["state"], "DELETING");
        let taken = lab.create(ONE, "app", json!({})).await.refusal();
        assert!(taken.contains("already exists"), "{taken}");
        let run = lab.run(ONE, "app", json!({})).await.refusal();
        assert!(run.contains("No active version found"), "{run}");
        let again = lab.call(ONE, "DELETE", &path, Value::Null).await.ok();
        assert_eq!(again, expected, "a deletion may be repeated");

        let gone = lab.until_gone(ONE, &path).await;
        assert_eq!(
            gone,
            format!(
                "404 ResourceNotFoundException: MicroVMImage not found for MicroVMImageID: {}",
                arn(ONE, "app")
            )
        );
        assert_eq!(world.build_dirs(), Vec::<std::path::PathBuf>::new());
        let refused = lab.call(ONE, "DELETE", &path, Value::Null).await;
        assert_eq!(refused.status, 404);
        // The client token went with the image.
        let anew = lab.create(ONE, "app", token).await.ok();
        assert_ne!(anew["id"], created["id"]);
        lab.until_image(ONE, "app", "CREATED").await;
    });
}

#[test]
fn an_image_in_use_is_not_deleted() {
    World::new("").day(async |lab| {
        lab.built(ONE, "app").await;
        let path = image_path(ONE, "app");
        let delete = async || lab.call(ONE, "DELETE", &path, Value::Null).await;
        let vm = lab.running(ONE, "app", json!({})).await;
        const IN_USE: &str =
            "400 ValidationException: Cannot delete microvm image with running microvms.";
        assert_eq!(delete().await.refusal(), IN_USE);
        let suspend = format!("/2025-09-09/microvms/{vm}/suspend");
        lab.call(ONE, "POST", &suspend, Value::Null).await.ok();
        lab.until_vm(ONE, &vm, "SUSPENDED").await;
        assert_eq!(delete().await.refusal(), IN_USE);
        assert_eq!(lab.image(ONE, "app").await["state"], "CREATED");
        // One that is being terminated is no hindrance, but its files wait for its end.
        let vm_path = format!("/2025-09-09/microvms/{vm}");
        lab.call(ONE, "DELETE", &vm_path, Value::Null).await.ok();
        delete().await.ok();
        lab.until_gone(ONE, &path).await;
        lab.until_vm(ONE, &vm, "TERMINATED").await;
    });
}

#[test]
fn a_build_is_called_off_when_the_caller_says_so() {
    let world = World::new("");
    world.day(async |lab| {
        lab.create(ONE, "app", slow(ONE)).await.ok();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let version = lab.get(ONE, &version_path(ONE, "app", "1.0")).await.ok();
        assert_eq!(version["state"], "IN_PROGRESS");
        assert_eq!(world.fake.machines(), 1, "the build VM");
        let path = image_path(ONE, "app");
        let refused = lab.call(ONE, "DELETE", &path, Value::Null).await.refusal();
        assert!(refused.contains("in its current state"), "{refused}");
        let began = tokio::time::Instant::now();
        let cancel = format!("{path}?dormouse-cancel=true");
        lab.call(ONE, "DELETE", &cancel, Value::Null).await.ok();
        lab.until_gone(ONE, &path).await;
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "it did not wait for the build"
        );
        assert_eq!(world.fake.machines(), 0);
        assert_eq!(world.build_dirs(), Vec::<std::path::PathBuf>::new());
        lab.built(ONE, "app").await;
    });
}

#[test]
fn files_that_cannot_be_deleted_fail_the_deletion_which_may_be_repeated() {
    let world = World::new("");
    world.day(async |lab| {
        lab.built(ONE, "app").await;
        let path = image_path(ONE, "app");
        for _ in 0..dormouse_core::limits::DELETE_ATTEMPTS {
            world
                .fake
                .fail_next(dormouse_node::vmm::fake::Failure::Reap);
        }
        lab.call(ONE, "DELETE", &path, Value::Null).await.ok();
        lab.until_image(ONE, "app", "DELETE_FAILED").await;
        let run = lab.run(ONE, "app", json!({})).await.refusal();
        assert!(run.contains("No active version found"), "{run}");
        lab.call(ONE, "DELETE", &path, Value::Null).await.ok();
        lab.until_gone(ONE, &path).await;
        assert_eq!(world.build_dirs(), Vec::<std::path::PathBuf>::new());
    });
}

#[test]
fn a_deletion_that_was_asked_for_twice_spares_the_image_that_takes_the_name() {
    let world = World::new("");
    world.day(async |lab| {
        lab.built(ONE, "app").await;
        let path = image_path(ONE, "app");
        // One of the two deletions has to try again, and is late.
        world
            .fake
            .fail_next(dormouse_node::vmm::fake::Failure::Reap);
        for _ in 0..2 {
            lab.call(ONE, "DELETE", &path, Value::Null).await.ok();
        }
        lab.until_gone(ONE, &path).await;
        lab.built(ONE, "app").await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(lab.image(ONE, "app").await["state"], "CREATED");
        lab.running(ONE, "app", json!({})).await;
        assert_eq!(world.build_dirs().len(), 1);
    });
}

#[test]
fn a_list_is_cut_before_it_is_filtered() {
    World::new("").day(async |lab| {
        for name in ["web-1", "job-1", "job-2"] {
            let body = settings(ONE, "bad.zip");
            lab.create(ONE, name, body).await.ok();
        }
        let page = async |more: &str| {
            let path = format!("/2025-09-09/microvm-images?maxResults=1&nameFilter=web{more}");
            lab.get(ONE, &path).await.ok()
        };
        let first = page("").await;
        assert_eq!(first["items"], json!([]), "newest first: job-2");
        let token = first["nextToken"].as_str().unwrap();
        let second = page(&format!("&nextToken={token}")).await;
        let token = second["nextToken"].as_str().unwrap();
        let third = page(&format!("&nextToken={token}")).await;
        assert_eq!(third["items"][0]["name"], "web-1");
        assert_eq!(third["nextToken"], Value::Null);
    });
}

#[test]
fn managed_images_are_listed_with_their_versions() {
    World::new("").day(async |lab| {
        let listed = lab
            .get(ONE, "/2025-09-09/managed-microvm-images")
            .await
            .ok();
        let base = listed["items"][0]["imageArn"].as_str().unwrap().to_owned();
        for arn in [base.as_str(), BASE_ARN] {
            let path = format!(
                "/2025-09-09/managed-microvm-images/{}/versions",
                super::lab::encoded(arn)
            );
            let versions = lab.get(ONE, &path).await.ok();
            assert_eq!(versions["items"][0]["imageVersion"], "1");
            assert_eq!(versions["items"][0]["status"], "AVAILABLE");
            assert_eq!(versions["items"][0]["imageArn"], *arn);
        }
        let other = super::lab::encoded("arn:aws:lambda:us-east-1:aws:microvm-image:none");
        let path = format!("/2025-09-09/managed-microvm-images/{other}/versions");
        assert_eq!(lab.get(ONE, &path).await.status, 404);
    });
}
