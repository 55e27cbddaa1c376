"""What is said of the project as a whole, and what a wheel holds."""

import pathlib
import re
import runpy
import tomllib

import setuptools

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def test_the_version_stands_once_and_its_changes_are_told():
  changes = (ROOT / 'CHANGELOG.md').read_text()
  newest = re.search(r'^## (\S+)$', changes, re.MULTILINE).group(1)
  assert newest == PROJECT['version']
  assert PROJECT['version'] not in (ROOT / 'CITATION.cff').read_text()


def test_licence_and_citation_say_the_same():
  assert 'Apache License\n' in (ROOT / 'LICENSE').read_text()
  assert PROJECT['license'] == 'Apache-2.0'
  citation = (ROOT / 'CITATION.cff').read_text()
  assert 'license: Apache-2.0\n' in citation
  assert 'Diffusion Self-Supervised Representation Learning\n' in citation


def test_a_wheel_holds_every_folder_of_code(monkeypatch):
  said = {}
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(setuptools, 'setup', said.update)
  runpy.run_path(str(ROOT / 'setup.py'))
  folders = {
    said['package_dir'].get(name, name.replace('.', '/'))
    for name in said['packages']
  }
  want = {
    str(path.parent.relative_to(ROOT))
    for top in ('micdiffrep_jax', 'configs')
    for path in (ROOT / top).rglob('*.py')
  }
  assert folders == want


def test_constraints_allow_what_requirements_ask_for():
  pins = dict(
    line.split('==')
    for line in (ROOT / 'constraints.txt').read_text().lower().splitlines()
    if not line.startswith('#')
  )
  for line in (ROOT / 'requirements.txt').read_text().lower().splitlines():
    name = re.match(r'[\w-]+', line).group()
    known = {k.replace('_', '-') for k in pins}
    assert name.replace('_', '-') in known
