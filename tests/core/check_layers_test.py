"""Shows that scripts/check_layers.py finds a break: it is run on small trees made for the purpose."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "check_layers.py"
TREE = {
    "needle/core/CMakeLists.txt": "needle_add_library(core SOURCES a.cpp PRIVATE_LINKS fmt::fmt)",
    "needle/core/a.cpp": "#include <fmt/format.h>\n",
    "needle/calls/CMakeLists.txt": "needle_add_library(calls SOURCES a.cpp\n  LINKS needle::core)",
    "needle/calls/a.cpp": '#include "needle/core/error.h"\n#include "needle/calls/tool.h"\n',
    "needle/train/CMakeLists.txt": "needle_add_library(train TORCH SOURCES a.cpp LINKS needle::core)",
    "needle/train/a.cpp": "#include <torch/torch.h>\n",
    "apps/needle_run/CMakeLists.txt": "needle_add_app(needle_run SOURCES main.cpp LINKS needle::calls)",
    "apps/needle_run/main.cpp": "#include <CLI/CLI.hpp>\n",
}


def run(changes):
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {**TREE, **changes}.items():
            path = pathlib.Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        result = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True)
        return result.returncode, result.stdout


class CheckLayersTest(unittest.TestCase):
    def test_accepts_a_tree_in_order(self):
        self.assertEqual(run({})[0], 0, run({})[1])

    def test_names_file_and_line_of_a_break(self):
        for changes, place in [
            ({"needle/core/b.cpp": '\n#include "needle/calls/tool.h"\n'}, "needle/core/b.cpp:2: "),
            ({"needle/calls/b.h": "#include <torch/torch.h>\n"}, "needle/calls/b.h:1: "),
            ({"needle/calls/b.h": "#include <spdlog/spdlog.h>\n"}, "needle/calls/b.h:1: "),
            ({"needle/calls/b.h": '\n#include "needle/core/log.h"\n'}, "needle/calls/b.h:2: "),
            ({"needle/train/b.cpp": '#include "needle/core/log.h"\n'}, "needle/train/b.cpp:1: "),  # not linked
            ({"needle/text/b.cpp": "#include <sentencepiece_processor.h>\n"}, "needle/text/b.cpp:1: "),
            ({"needle/train/b.cpp": "# include <fmt/core.h>\n"}, "needle/train/b.cpp:1: "),
            ({"needle/train/b.cpp": '#include "needle/data/pack.h"\n'}, "needle/train/b.cpp:1: "),  # not linked
            ({"needle/other/b.cpp": ""}, "needle/other:0: "),
            ({"needle/calls/CMakeLists.txt": "\nneedle_add_library(calls LINKS needle::core\n  needle::model)"},
             "needle/calls/CMakeLists.txt:2: "),
            ({"needle/calls/CMakeLists.txt": "needle_add_library(calls TORCH LINKS needle::core)"},
             "needle/calls/CMakeLists.txt:1: "),
            ({"apps/needle_run/main.cpp": '#include "needle/train/a.h"\n'}, "apps/needle_run/main.cpp:1: "),
            ({"apps/needle_run/CMakeLists.txt": "needle_add_app(needle_run LINKS needle::train)"},
             "apps/needle_run/CMakeLists.txt:1: "),
        ]:
            with self.subTest(place):
                code, output = run(changes)
                self.assertEqual(code, 1, output)
                self.assertIn(place, output)


if __name__ == "__main__":
    unittest.main()
