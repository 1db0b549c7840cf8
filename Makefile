# Each target is a task of tasks.py. PROFILE, DATA and other variables given to make reach it through
# the environment, so a value with spaces arrives whole.
PYTHON ?= python3

.PHONY: help report test test-slow lab handin setup lint lock clean

help:
	@"$(PYTHON)" tasks.py help

report:
	@"$(PYTHON)" tasks.py report

test:
	@"$(PYTHON)" tasks.py test

test-slow:
	@"$(PYTHON)" tasks.py test-slow

lab:
	@"$(PYTHON)" tasks.py lab

handin:
	@"$(PYTHON)" tasks.py handin

setup:
	@"$(PYTHON)" tasks.py setup

lint:
	@"$(PYTHON)" tasks.py lint

lock:
	@"$(PYTHON)" tasks.py lock

clean:
	@"$(PYTHON)" tasks.py clean
