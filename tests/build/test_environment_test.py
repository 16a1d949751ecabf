"""What ctest gives the C++ tests: one OpenMP thread each.

usage: test_environment_test.py CTEST BUILD_FOLDER/tests/LIBRARY
"""

import json
import subprocess
import sys

answer = subprocess.run([sys.argv[1], "--test-dir", sys.argv[2], "--show-only=json-v1"], check=True, capture_output=True, text=True)
tests = json.loads(answer.stdout)["tests"]
assert len(tests) > 50, f"ctest lists {len(tests)} tests in {sys.argv[2]}"
for test in tests:
    properties = {one["name"]: one["value"] for one in test["properties"]}
    assert properties.get("ENVIRONMENT") == ["OMP_NUM_THREADS=1"], f"{test['name']}: {properties}"
print(f"{len(tests)} tests")
