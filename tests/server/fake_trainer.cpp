#include "tests/server/fake_trainer.h"

#include <chrono>
#include <functional>
#include <thread>
#include <utility>

namespace needle::test {
namespace {

constexpr std::string_view kTrain = R"sh(#!/bin/sh
here=$(dirname "$0")
echo "$*" >> "$here/calls"
while [ $# -gt 0 ]; do
  [ "$1" = --output ] && run=$2
  shift
done
trap 'echo "stopped after step 1" >&2; exit 130' INT
echo '{"kind":"train","step":1,"total_steps":2,"loss":3.5,"seconds":0.5}'
while [ -e "$here/hold" ]; do sleep 0.02; done
if [ -e "$here/fill" ]; then
  mkdir -p "$run"
  printf '{"kind":"train","st'
  cat /dev/zero > "$run/checkpoint"
  echo "error: $run/checkpoint: No space left on device" >&2
  exit 1
fi
if [ -e "$here/fail" ]; then
  echo "loading" >&2
  echo "error: rows.jsonl:3: a row that cannot be trained on" >&2
  exit 1
fi
echo '{"kind":"train","step":2,"total_steps":2,"loss":1.5,"seconds":1}'
echo '{"kind":"validation","step":2,"exact_match":0.5}'
mkdir -p "$run/bundle"
echo weights > "$run/bundle/model.safetensors"
echo "# A finetuned model" > "$run/bundle/README.md"
echo '{"kind":"evaluation","model":"finetuned","report":{"examples":1,"failures":[]}}'
echo '{"kind":"summary","steps":2}'
)sh";

constexpr std::string_view kExport = R"sh(#!/bin/sh
[ -d "$2" ] || exit 1
echo exported > "$4"
)sh";

bool becomes_true(const std::function<bool()>& condition) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

}  // namespace

FakeTrainer::FakeTrainer(std::filesystem::path place) : folder(std::move(place)) {
  std::filesystem::create_directories(folder);
  for (const auto& [name, text] : {std::pair("needle-train", kTrain), {"needle-export", kExport}}) {
    write_file_atomic(folder / name, text);
    std::filesystem::permissions(folder / name, std::filesystem::perms::owner_all);
  }
}

JobsOptions FakeTrainer::options() const {
  return {.folder = folder / "jobs",
          .models = folder / "models",
          .train_program = folder / "needle-train",
          .export_program = folder / "needle-export",
          .min_free_bytes = 0};
}

void FakeTrainer::set(const std::string& name, bool there) const {
  if (there) {
    write_file_atomic(folder / name, "");
  } else {
    std::filesystem::remove(folder / name);
  }
}

std::string FakeTrainer::calls() const { return read_file(folder / "calls"); }

bool reaches(const FinetuneJobs& jobs, const std::string& id, JobStage stage) {
  return becomes_true([&] { return jobs.state(id).stage == stage && jobs.list()["active"] != id; });
}

bool has_begun(const FinetuneJobs& jobs, const std::string& id) {
  return becomes_true([&] { return jobs.show(id)["progress"]["step"] == 1; });
}

}  // namespace needle::test
