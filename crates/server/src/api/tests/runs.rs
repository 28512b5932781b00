//! Launches as the control plane sees them.

use super::lab::{ONE, World, arn};
use serde_json::{Value, json};

#[test]
fn a_launch_answers_pending_with_all_defaults() {
    World::new("").day(async |lab| {
        lab.built(ONE, "app").await;
        let answer = lab.run(ONE, "app", json!({})).await;
        assert_eq!(answer.status, 200);
        let vm = answer.ok();
        let managed = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector";
        for (member, value) in [
            (
                "egressNetworkConnectors",
                json!([format!("{managed}:INTERNET_EGRESS")]),
            ),
            ("executionRoleArn", Value::Null),
            ("idlePolicy", Value::Null),
            ("imageArn", json!(arn(ONE, "app"))),
            ("imageVersion", json!("1.0")),
            (
                "ingressNetworkConnectors",
                json!([format!("{managed}:HTTP_INGRESS")]),
            ),
            ("maximumDurationInSeconds", json!(28800)),
            ("state", json!("PENDING")),
            ("stateReason", Value::Null),
            ("terminatedAt", Value::Null),
            ("terminationReasonCode", Value::Null),
        ] {
            assert_eq!(vm.get(member), Some(&value), "{member}");
        }
        assert_eq!(vm.as_object().unwrap().len(), 14);
        let endpoint = vm["endpoint"].as_str().unwrap();
        assert!(
            !endpoint.contains('/') && !endpoint.contains(':'),
            "{endpoint}"
        );
        let id = vm["microvmId"].as_str().unwrap();
        lab.until_vm(ONE, id, "RUNNING").await;
        let listed = lab.get(ONE, "/2025-09-09/microvms").await.ok();
        let item = listed["items"][0].as_object().unwrap();
        let members: Vec<_> = item.keys().map(String::as_str).collect();
        assert_eq!(
            members,
            [
                "imageArn",
                "imageVersion",
                "microvmId",
                "startedAt",
                "state"
            ]
        );
    });
}

#[test]
fn a_repeated_wish_is_granted_again_until_the_end() {
    World::new("").day(async |lab| {
        lab.built(ONE, "app").await;
        let vm = lab.running(ONE, "app", json!({})).await;
        let path = format!("/2025-09-09/microvms/{vm}");
        for (action, state) in [("suspend", "SUSPENDED"), ("resume", "RUNNING")] {
            for _ in 0..2 {
                let wish = format!("{path}/{action}");
                let answer = lab.call(ONE, "POST", &wish, Value::Null).await;
                assert_eq!(answer.ok(), json!({}));
                lab.until_vm(ONE, &vm, state).await;
            }
        }
        for _ in 0..2 {
            let answer = lab.call(ONE, "DELETE", &path, Value::Null).await;
            assert_eq!(answer.ok(), json!({}));
            lab.until_vm(ONE, &vm, "TERMINATED").await;
        }
        for action in ["suspend", "resume"] {
            let wish = format!("{path}/{action}");
            let refused = lab.call(ONE, "POST", &wish, Value::Null).await.refusal();
            assert_eq!(
                refused,
                format!(
                    "400 ValidationException: The MicroVM {vm} has been terminated and its state cannot be \
                     changed."
                )
            );
        }
        let ended = lab.get(ONE, &path).await.ok();
        assert_eq!(ended["stateReason"], "Success.");
        assert!(ended["terminatedAt"].is_f64());
    });
}

#[test]
fn a_client_token_is_one_microvm() {
    World::new("").day(async |lab| {
        lab.built(ONE, "app").await;
        let token = json!({"clientToken": "token"});
        // At the same moment, one after the other, and after its end.
        let (one, two) = tokio::join!(
            lab.run(ONE, "app", token.clone()),
            lab.run(ONE, "app", token.clone())
        );
        let (one, two) = (one.ok(), two.ok());
        assert_eq!(one["microvmId"], two["microvmId"]);
        let id = one["microvmId"].as_str().unwrap();
        lab.until_vm(ONE, id, "RUNNING").await;
        lab.terminate(ONE, id).await;
        let again = lab.run(ONE, "app", token).await.ok();
        assert_eq!(again["microvmId"], id);
        let other = json!({"clientToken": "token", "maximumDurationInSeconds": 100});
        let refused = lab.run(ONE, "app", other).await.refusal();
        assert!(refused.starts_with("409 ConflictException"), "{refused}");
    });
}

#[test]
fn a_request_is_checked_in_awss_order() {
    World::new("[quotas]\nmemory_mib = 0").day(async |lab| {
        lab.built(ONE, "app").await;
        let run = async |body: Value| {
            let answer = lab.call(ONE, "POST", "/2025-09-09/microvms", body).await;
            answer.refusal()
        };
        let long = "x".repeat(4097);
        // The length comes before the ARN, the ARN before the image, the image before the hook, the hook
        // before the quota.
        assert_eq!(
            run(json!({"imageIdentifier": "app", "runHookPayload": long})).await,
            "400 ValidationException: 1 validation error detected: Value at 'runHookPayload' failed to satisfy \
             constraint: Member must have length less than or equal to 4096"
        );
        assert_eq!(
            run(json!({"imageIdentifier": "app", "runHookPayload": "x"})).await,
            "400 ValidationException: Malformed ARN - doesn't start with 'arn:'"
        );
        let absent = arn(ONE, "absent");
        assert_eq!(
            run(json!({"imageIdentifier": absent, "runHookPayload": "x"})).await,
            format!("404 ResourceNotFoundException: No active version found for MicroVM image {absent}")
        );
        let image = arn(ONE, "app");
        assert_eq!(
            run(json!({"imageIdentifier": image, "runHookPayload": "x"})).await,
            "400 ValidationException: The run hook must be enabled in the MicroVM image to pass the run hook \
             payload"
        );
        assert_eq!(
            run(json!({"imageIdentifier": image})).await,
            "402 ServiceQuotaExceededException: The base maximum allocated memory limit has been reached for \
             this account."
        );
    });
}
