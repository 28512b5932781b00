//! Tags.

use super::lab::{Answer, Lab, ONE, TWO, World, arn, encoded};
use serde_json::{Value, json};

fn path(arn: &str) -> String {
    format!("/2017-03-31/tags/{}", encoded(arn))
}

async fn add(lab: &Lab, arn: &str, tags: Value) -> Answer {
    lab.call(ONE, "POST", &path(arn), json!({"Tags": tags}))
        .await
}

async fn tags(lab: &Lab, arn: &str) -> Value {
    lab.get(ONE, &path(arn)).await.ok()["Tags"].clone()
}

#[test]
fn tags_of_an_image_are_set_changed_and_taken_off() {
    World::new("").day(async |lab| {
        let image = arn(ONE, "app");
        lab.create(ONE, "app", json!({"tags": {"a": "1"}}))
            .await
            .ok();
        assert_eq!(tags(&lab, &image).await, json!({"a": "1"}));
        let added = add(&lab, &image, json!({"a": "2", "b": ""})).await;
        assert_eq!((added.status.as_u16(), &added.body), (204, &Value::Null));
        assert_eq!(tags(&lab, &image).await, json!({"a": "2", "b": ""}));
        lab.until_image(ONE, "app", "CREATED").await;
        assert_eq!(
            lab.image(ONE, "app").await["tags"],
            json!({"a": "2", "b": ""})
        );
        let off = format!("{}?tagKeys=a&tagKeys=absent", path(&image));
        let removed = lab.call(ONE, "DELETE", &off, Value::Null).await;
        assert_eq!(
            (removed.status.as_u16(), &removed.body),
            (204, &Value::Null)
        );
        assert_eq!(tags(&lab, &image).await, json!({"b": ""}));
    });
}

#[test]
fn a_resource_has_fifty_tags_at_most() {
    World::new("").day(async |lab| {
        let many = |from: usize, to: usize| -> Value {
            (from..to)
                .map(|n| (format!("key-{n}"), json!("x")))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let refused = lab.create(ONE, "app", json!({"tags": many(0, 51)})).await;
        assert_eq!(refused.status, 400);
        lab.create(ONE, "app", json!({"tags": many(0, 50)}))
            .await
            .ok();
        let image = arn(ONE, "app");
        assert_eq!(add(&lab, &image, many(50, 51)).await.status, 400);
        add(&lab, &image, json!({"key-1": "changed"})).await.ok();
        assert_eq!(tags(&lab, &image).await.as_object().unwrap().len(), 50);
    });
}

#[test]
fn tags_at_the_same_moment_are_all_kept() {
    World::new("").day(async |lab| {
        lab.create(ONE, "app", json!({})).await.ok();
        let image = arn(ONE, "app");
        let (a, b, c) = tokio::join!(
            add(&lab, &image, json!({"a": ""})),
            add(&lab, &image, json!({"b": ""})),
            add(&lab, &image, json!({"c": ""})),
        );
        for answer in [a, b, c] {
            answer.ok();
        }
        assert_eq!(tags(&lab, &image).await, json!({"a": "", "b": "", "c": ""}));
        // A build that ends at that moment is recorded all the same.
        lab.until_image(ONE, "app", "CREATED").await;
    });
}

#[test]
fn only_what_is_there_and_ones_own_has_tags() {
    World::new("").day(async |lab| {
        let absent = arn(ONE, "absent");
        for answer in [
            lab.get(ONE, &path(&absent)).await,
            add(&lab, &absent, json!({"a": ""})).await,
        ] {
            let refused = answer.refusal();
            assert!(
                refused.starts_with("404 ResourceNotFoundException"),
                "{refused}"
            );
        }
        let foreign = add(&lab, &arn(TWO, "app"), json!({"a": ""}))
            .await
            .refusal();
        assert!(
            foreign.starts_with("403 AccessDeniedException"),
            "{foreign}"
        );
    });
}
