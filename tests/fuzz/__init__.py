# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzzing: front-ends and drivers that do anything at all.

Theory of operation
-------------------
A *target* is a callable that takes bytes and raises if something is not as it must be. There are three:

``stream`` (stream.py)
    vhost-user messages, with descriptors: cut anywhere for the codec alone, then through a real socket to a whole
    `Backend` in this process.
``chains`` (chains.py)
    guest memory with descriptors, rings and indirect tables in it, for a `VirtQueue` that Python uses, where each step
    is compared with an oracle (oracle.py), and for native devices in a worker's thread.
``disk`` (disk.py)
    blk requests in any form, compared with a model of a disk.

The input of each is a list of *steps* (script.py), so that mutations keep what surrounds them whole.

libFuzzer finds inputs, through atheris, in a process of its own (harness.py); runner.py starts that. What guides it:
atheris instruments our Python, and gcc counts blocks and comparisons in native modules (tests/support/coverage.h);
clang would do that by itself, but the modules are to be built by the compiler that builds them otherwise. It costs some
5 % of the inputs a second, and is worth it: ``chains``, begun with its seeds alone, reaches 50 ways to be served or
refused in a minute, and 25 without. The same modules are built with the address and undefined behaviour sanitizers and
run with the runtimes of those that atheris brings, as libFuzzer must be linked with them. So some 250 inputs a second
go through ``stream``, 1500 through ``chains``, 100 through ``disk``, where one has a processor for itself.

*The corpus* is in ``corpus/TARGET``, minimised; seeds.py made the first of it out of what QEMU, User-Mode Linux and our
own front-end say, and those stay in it. So does an input that once broke something, as ``regression-*``. Each run
begins with all of it. Tests also replay it without libFuzzer (tests/integration/test_fuzz.py), with gcc's runtimes, and
see to it that it still gets as far as it did (depth.py).

With PYTHONPATH=tests, but for the first:

    make fuzz TARGET=all SECONDS=600            all targets, so long each; new inputs stay in build/fuzz
    .venv/bin/python -m fuzz run stream 60      one of them
    .venv/bin/python -m fuzz replay stream FILE..    run inputs once: what broke is reproduced with that
    .venv/bin/python -m fuzz show FILE          print the steps of an input
    .venv/bin/python -m fuzz keep stream        merge what was found into the corpus
    .venv/bin/python -m fuzz seeds FOLDER       make the seeds anew
"""
