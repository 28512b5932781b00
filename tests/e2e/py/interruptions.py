"""Suspends MicroVMs amid their tests' requests, at random moments. From a client's side that never happened, so the tests
pass all the same (`make test-interrupted`).

DORMOUSE_TEST_INTERRUPT is the seed. Only tests that do not look at states take part.
"""

import os
import random
import threading
import time
import weakref

from botocore.exceptions import ClientError
from harness.cloud import Vm
from harness.endpoint import Endpoint

SEED = os.environ.get("DORMOUSE_TEST_INTERRUPT")
MODULES = (
    "test_accounts", "test_dockerfile", "test_clones", "test_ingress", "test_protocols", "test_isolation", "test_connectors",
    "test_shell", "test_proxy", "test_oci", "test_resources", "test_images",
)
SHARE = 0.25
DELAY_S = 0.4

suspended = 0


def install():
    """Has every request of the suite risk a suspend."""
    chance = random.Random(int(SEED))
    vms = weakref.WeakValueDictionary()
    begin, ask = Vm.__init__, Endpoint.request

    def known(vm, *arguments):
        begin(vm, *arguments)
        vms[vm.address] = vm

    def interrupted(endpoint, *arguments, **more):
        vm = vms.get(endpoint.address)
        if vm is None or chance.random() > SHARE:
            return ask(endpoint, *arguments, **more)
        suspend = threading.Thread(target=suspend_soon, args=(vm, chance.uniform(0, DELAY_S)))
        suspend.start()
        try:
            return ask(endpoint, *arguments, **more)
        finally:
            suspend.join()

    Vm.__init__, Endpoint.request = known, interrupted


def suspend_soon(vm, delay_s):
    global suspended
    time.sleep(delay_s)
    try:
        vm.suspend()
        suspended += 1
    except ClientError:
        # It is being launched, or is over.
        pass
