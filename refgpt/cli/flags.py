"""Rewords errors of the library for the command line: options instead of Python's keywords."""

from __future__ import annotations

import argparse
import re

from refgpt._common.errors import RefgptError

#: What the library advises to both: "dtype='f32' (--dtype f32)".
BOTH = re.compile(r"[a-z_]+=\S+(?: (?:and|or) [a-z_]+=\S+)* \((--[^)]*)\)")


def in_flags(error: RefgptError, arguments: argparse.Namespace) -> RefgptError:
    """The same error, naming the command's options instead of Python's keywords.

    An argument that happens to equal a keyword, such as a file named "seed", is left unchanged.
    """
    where = error.where
    if isinstance(where, str) and where not in vars(arguments).values():
        where = arguments.parser.flags().get(where, where)
    return type(error)(error.what, where=where, got=error.got, wanted=error.wanted, fix=BOTH.sub(r"\1", error.fix))
