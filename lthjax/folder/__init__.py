"""The run folder: every cell is written once and atomically, and checked whenever it is read.

Several processes may write to one folder, each to other seeds.

    <out>/<name>-<fingerprint>/
      study.json                              config, versions, devices; with a checksum
      log.txt
      .lock, .locks/seed=3                    `lthjax.locks`: of study.json, and of each seed
      seed=3/state=500/                       weights and statistics at a rewind step (and at 0)
      seed=3/dense/                           level 0
      seed=3/chain=rewind-0/level=07/ARM[.rN]/
          result.json                         scalars, curves, sources
          mask.npz                            bit-packed
          variables/                          final weights and statistics (orbax)
          manifest.json                       `lthjax.manifest`: identity, and a checksum of every file
      seed=3/under-way/CELL/step=500/         a training run that is not finished: its position
      damaged/                                files that `analysis.check --repair` has set aside

A folder of an older version has no manifests; it can be read, with one warning that it is unchecked.
"""
