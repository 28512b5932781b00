"""Says at once why a test failed: should the test host end in the middle, pytest's own report never comes."""


def pytest_runtest_logreport(report):
    if report.failed:
        print(f"\n{report.longreprtext}\n", flush=True)
