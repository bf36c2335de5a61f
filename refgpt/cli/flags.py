"""Errors of the library in the words of the command line: options where Python has keywords."""

from __future__ import annotations

import argparse
import re

from refgpt._common.errors import RefgptError

#: What the library advises to both: "dtype='f32' (--dtype f32)".
BOTH = re.compile(r"[a-z_]+=\S+(?: (?:and|or) [a-z_]+=\S+)* \((--[^)]*)\)")


def in_flags(error: RefgptError, arguments: argparse.Namespace) -> RefgptError:
    """The same error, naming the options of the command that was given instead of the keywords of Python.

    A place that is called like a keyword but was itself an argument, as a file "seed" would be, stays as it is.
    """
    where = error.where
    if isinstance(where, str) and where not in vars(arguments).values():
        where = arguments.parser.flags().get(where, where)
    return type(error)(error.what, where=where, got=error.got, wanted=error.wanted, fix=BOTH.sub(r"\1", error.fix))
