//! Nothing crosses from one account to another.

use super::lab::{ONE, TWO, World, arn, bucket, encoded, image_path, version_path};
use crate::api::sts;
use dormouse_api::sigv4::{self, Scope};
use http::Request;
use serde_json::{Value, json};

#[test]
fn no_operation_reaches_another_accounts_things() {
    World::new("").day(async |lab| {
        lab.built(ONE, "app").await;
        let vm = lab.running(ONE, "app", json!({})).await;
        let image = image_path(ONE, "app");
        let version = version_path(ONE, "app", "1.0");
        let builds = lab.get(ONE, &format!("{version}/builds")).await.ok();
        let build = builds["items"][0]["buildId"].as_str().unwrap();
        let tags = format!("/2017-03-31/tags/{}", encoded(&arn(ONE, "app")));
        let vm_path = format!("/2025-09-09/microvms/{vm}");
        let settings = super::lab::settings(TWO, "app.zip");
        for (method, path, body) in [
            ("GET", image.clone(), Value::Null),
            ("PUT", image.clone(), settings),
            ("DELETE", image.clone(), Value::Null),
            ("GET", format!("{image}/versions"), Value::Null),
            ("GET", version.clone(), Value::Null),
            ("PATCH", version.clone(), json!({"status": "INACTIVE"})),
            ("DELETE", version.clone(), Value::Null),
            ("GET", format!("{version}/builds"), Value::Null),
            ("GET", format!("{version}/builds/{build}"), Value::Null),
            ("GET", tags.clone(), Value::Null),
            ("POST", tags.clone(), json!({"Tags": {"a": "b"}})),
            ("DELETE", format!("{tags}?tagKeys=a"), Value::Null),
            (
                "POST",
                "/2025-09-09/microvms".to_owned(),
                json!({"imageIdentifier": arn(ONE, "app")}),
            ),
            (
                "GET",
                format!(
                    "/2025-09-09/microvms?imageIdentifier={}",
                    encoded(&arn(ONE, "app"))
                ),
                Value::Null,
            ),
        ] {
            let refused = lab.call(TWO, method, &path, body).await.refusal();
            assert!(
                refused.starts_with("403 AccessDeniedException"),
                "{method} {path}: {refused}"
            );
        }
        let token = json!({"expirationInMinutes": 5, "allowedPorts": [{"allPorts": {}}]});
        for (method, path, body) in [
            ("GET", vm_path.clone(), Value::Null),
            ("DELETE", vm_path.clone(), Value::Null),
            ("POST", format!("{vm_path}/suspend"), Value::Null),
            ("POST", format!("{vm_path}/resume"), Value::Null),
            ("POST", format!("{vm_path}/auth-token"), token),
            (
                "POST",
                format!("{vm_path}/shell-auth-token"),
                json!({"expirationInMinutes": 5}),
            ),
        ] {
            let refused = lab.call(TWO, method, &path, body).await.refusal();
            let expected = format!("404 ResourceNotFoundException: MicroVM not found: {vm}");
            assert_eq!(refused, expected, "{method} {path}");
        }
        for path in ["/2025-09-09/microvm-images", "/2025-09-09/microvms"] {
            assert_eq!(lab.get(TWO, path).await.ok()["items"], json!([]), "{path}");
        }
        // All is as it was, and the names of one account are free in the other.
        lab.until_vm(ONE, &vm, "RUNNING").await;
        assert_eq!(lab.image(ONE, "app").await["state"], "CREATED");
        lab.built(TWO, "app").await;
        let own = lab.run(TWO, "app", json!({"clientToken": "t"})).await.ok();
        assert_eq!(own["imageArn"], arn(TWO, "app"));
        let other = lab.run(ONE, "app", json!({"clientToken": "t"})).await.ok();
        assert_ne!(
            own["microvmId"], other["microvmId"],
            "client tokens are each account's own"
        );
    });
}

#[test]
fn an_artifact_in_another_accounts_bucket_fails_the_build() {
    World::new("").day(async |lab| {
        let uri = format!("s3://{}/app.zip", bucket(ONE));
        let stolen = json!({"codeArtifact": {"uri": uri}});
        lab.create(TWO, "app", stolen).await.ok();
        lab.until_image(TWO, "app", "CREATE_FAILED").await;
        let path = format!("{}/builds", version_path(TWO, "app", "1.0"));
        let builds = lab.get(TWO, &path).await.ok();
        let reason = builds["items"][0]["stateReason"].as_str().unwrap();
        assert!(reason.starts_with("S3_ACCESS_DENIED"), "{reason}");
    });
}

#[test]
fn identifiers_that_are_none_are_told_apart() {
    World::new("").day(async |lab| {
        let get = async |identifier: &str| {
            let path = format!("/2025-09-09/microvm-images/{}", encoded(identifier));
            lab.get(ONE, &path).await.refusal()
        };
        assert_eq!(
            get("app").await,
            "400 ValidationException: Invalid ARN format: app"
        );
        for denied in [
            arn(ONE, "app").replace("microvm-image:", "microvm-image/"),
            arn(ONE, "app").replace("us-east-1", "eu-west-1"),
            arn("aws", "al2023-1"),
            arn(TWO, "app"),
        ] {
            let refused = get(&denied).await;
            assert!(
                refused.starts_with("403 AccessDeniedException"),
                "{refused}"
            );
        }
    });
}

#[test]
fn sts_tells_clients_of_its_global_endpoint_too_who_they_are() {
    const BODY: &[u8] = b"Action=GetCallerIdentity&Version=2011-06-15";
    World::new("region = \"eu-north-1\"").day(async |lab| {
        let keys = &lab.0.keys;
        let key = keys.first_of(&lab.config.account).unwrap();
        for (region, status) in [("eu-north-1", 200), ("us-east-1", 200), ("us-west-2", 403)] {
            let request = Request::post("/")
                .header("host", "localhost")
                .header("content-type", "application/x-www-form-urlencoded");
            let (mut parts, ()) = request.body(()).unwrap().into_parts();
            let scope = Scope {
                region,
                service: "sts",
            };
            let now = jiff::Timestamp::now();
            sigv4::sign(&mut parts, BODY, &key.id, &key.secret, scope, now).unwrap();
            let answer = sts::handle(&lab, keys, &parts, BODY);
            assert_eq!(answer.status().as_u16(), status, "{region}");
        }
    });
}
