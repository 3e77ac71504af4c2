#!/usr/bin/env bash
# Test the installed plugin: a wheel made from the source distribution, in a new FOLDER.
#
#   bash tests/installed.sh FOLDER PYTHON [ARGUMENT …]      ARGUMENTs of pytest, such as tests/ops
#
# The tests, recipes and all else come from the source distribution, in FOLDER/source. There a link
# replaces the package; it leads to FOLDER/site, where the wheel is installed.
set -euo pipefail

folder=$1
python=$2
mkdir "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/.."
"$python" setup.py --quiet egg_info --egg-base "$folder" sdist --dist-dir "$folder"
cd "$folder"
tar xzf kron_plugin-*.tar.gz
mv kron_plugin-*/ source
pip() { "$python" -m pip --disable-pip-version-check --quiet "$@" --no-deps; }
pip wheel --no-build-isolation --wheel-dir . ./source
pip install --target site kron_plugin-*.whl
rm -r source/kron_plugin
ln -s ../site/kron_plugin source/kron_plugin
cd source
# Recipes set up an environment for their own clone; they must not change this one.
export PYTHON=false KRON_VENV=$folder/none
PYTHONPATH=$folder/site exec "$python" -P -m pytest -p no:cacheprovider "${@:3}" \
    --deselect tests/test_recipes.py::test_smoke_profile_beats_the_trivial_baseline \
    --deselect tests/test_recipes.py::test_two_processes_train_one_model \
    --deselect tests/test_recipes.py::test_two_machines_train_one_model \
    --deselect tests/test_recipes.py::test_wrong_calls_end_at_once \
    --deselect tests/cli/test_interrupts.py::test_a_recipe
