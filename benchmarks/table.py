"""A Markdown table of a results file.

python -m benchmarks.table results/benchmarks.json > results/benchmarks.md
"""

import json
import sys


def lines(results: dict) -> list[str]:
  """One line per peer of each benchmark; those without a peer are left out."""
  found = [
    '| what | ours, per s | peer, per s | ratio | machine | command |',
    '| --- | --- | --- | --- | --- | --- |',
  ]
  for name, record in sorted(results.items()):
    sides = record.get('sides', {})
    if 'ours' not in sides:
      continue
    for peer, side in sides.items():
      if peer == 'ours':
        continue
      low, high = side['quartiles']
      found.append(
        f'| {name}, {record["unit"]} | {sides["ours"]["per_s"]:g} | {peer}: '
        f'{side["per_s"]:g} | {side["ours_is_times_faster"]:.2f} ({low:.2f} to '
        f'{high:.2f}) | {record["machine"]}, {record["clock"]} time | '
        f'`{record["command"]}` |'
      )
  return found


def main() -> None:
  with open(sys.argv[1]) as f:
    print('\n'.join(lines(json.load(f))))


if __name__ == '__main__':
  main()
