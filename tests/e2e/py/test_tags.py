"""Tags of images."""

import uuid

import pytest
from botocore.exceptions import ClientError


@pytest.fixture(scope="module")
def image(cloud):
    # Its build fails, which does tags no harm.
    return cloud.create_image(b"not a zip", name=f"tagged-{uuid.uuid4()}", tags={"m80": "conformance"})


def test_tags_are_set_changed_and_taken_off(cloud, image):
    client = cloud.vms
    assert client.list_tags(Resource=image)["Tags"] == {"m80": "conformance"}
    added = client.tag_resource(Resource=image, Tags={"m80": "new", "team": "müller/ops"})
    assert added["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert client.list_tags(Resource=image)["Tags"] == {"m80": "new", "team": "müller/ops"}
    assert client.get_microvm_image(imageIdentifier=image)["tags"] == {"m80": "new", "team": "müller/ops"}
    removed = client.untag_resource(Resource=image, TagKeys=["m80", "absent"])
    assert removed["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert client.list_tags(Resource=image)["Tags"] == {"team": "müller/ops"}


def test_a_resource_has_fifty_tags_at_most(cloud, image):
    client = cloud.vms
    many = {f"key-{number}": "" for number in range(50)}
    client.untag_resource(Resource=image, TagKeys=list(client.list_tags(Resource=image)["Tags"]) or ["none"])
    client.tag_resource(Resource=image, Tags=many)
    with pytest.raises(ClientError) as refused:
        client.tag_resource(Resource=image, Tags={"one more": ""})
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert client.list_tags(Resource=image)["Tags"] == many


def test_what_is_not_there_has_no_tags(cloud, image):
    client = cloud.vms
    absent = image.rpartition(":")[0] + ":absent"
    for call, more in ((client.list_tags, {}), (client.tag_resource, {"Tags": {"a": "b"}}),
                       (client.untag_resource, {"TagKeys": ["a"]})):
        with pytest.raises(client.exceptions.ResourceNotFoundException):
            call(Resource=absent, **more)


def test_tags_survive_the_daemon(cloud, image):
    before = cloud.vms.list_tags(Resource=image)["Tags"]
    cloud.daemon.kill()
    cloud.daemon.start()
    assert cloud.vms.list_tags(Resource=image)["Tags"] == before
