"""Tables in docs/ are what the code says."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_generated_tables_are_current():
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `python docs/generate.py`: {done.stdout}{done.stderr}"


def test_the_schema_of_json_holds_the_version():
    page = (ROOT / "docs" / "json.md").read_text()
    schema = json.loads(page.split("```json\n")[1].split("```")[0])
    assert schema["$defs"].keys() == {"flops", "compare", "check"}
    columns = schema["$defs"]["compare"]["items"]
    for one in (schema["$defs"]["flops"], columns, schema["$defs"]["check"]):
        assert one["required"][0] == "version"
        assert one["properties"]["version"] == {"type": "number"}
    promised = {"flops", "flops_per_token", "convention", "parameters", "components", "stages", "not_counted"}
    assert promised <= set(columns["required"])
