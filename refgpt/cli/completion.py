"""``refgpt completion``: a shell script generated from the parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from refgpt.cli.options import Commands, add_command

EXAMPLES = """examples:
  source <(refgpt completion bash)                                   in ~/.bashrc
  source <(refgpt completion zsh)                                    in ~/.zshrc, after compinit
  refgpt completion fish > ~/.config/fish/completions/refgpt.fish
"""

BASH = """_refgpt() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command='' word options='' words=''
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $word in -*) ;; *) command=$word; break ;; esac
    done
    case "$command $previous" in
{values}
    *)
        case $command in
{options}
        esac
        [[ $current == -* ]] && words=$options ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _refgpt refgpt
"""


def add_to(commands: Commands) -> None:
    """Declare ``completion``."""
    help = "print a script for shell completion of refgpt's commands and options"
    completion = add_command(commands, "completion", _completion, help, EXAMPLES)
    completion.add_argument("shell", choices=SCRIPTS, help="which shell")
    completion.set_defaults(commands=commands)


def _completion(arguments: argparse.Namespace) -> int:
    print(SCRIPTS[arguments.shell](arguments.commands), end="")
    return 0


def _bash(commands: Commands) -> str:
    values, options = [], [f"        '') options='--help --version' words='{' '.join(commands.choices)}' ;;"]
    for name, parser in commands.choices.items():
        long = [string for action in _options(parser) for string in action.option_strings if string.startswith("--")]
        words = [choice for action in _positionals(parser) for choice in _choices(action)]
        options.append(f"        {name}) options='{' '.join(long)}' words='{' '.join(words)}' ;;")
        for action in _options(parser):
            if action.nargs != 0:  # it takes a value: one of its choices, otherwise perhaps a file
                patterns = "|".join(f"'{name} {string}'" for string in action.option_strings)
                values.append(f"    {patterns}) words='{' '.join(_choices(action))}' ;;")
    return BASH.format(values="\n".join(values), options="\n".join(options))


def _zsh(commands: Commands) -> str:
    return f"autoload -U +X bashcompinit && bashcompinit\n{_bash(commands)}"


def _fish(commands: Commands) -> str:
    lines = [f"complete -c refgpt -n __fish_use_subcommand -f -a '{name}'" for name in commands.choices]
    for name, parser in commands.choices.items():
        here = f"complete -c refgpt -n '__fish_seen_subcommand_from {name}'"
        if choices := [choice for action in _positionals(parser) for choice in _choices(action)]:
            lines.append(f"{here} -f -a '{' '.join(choices)}'")
        for action in _options(parser):
            forms = [f"-l {s[2:]}" if s.startswith("--") else f"-s {s[1:]}" for s in action.option_strings]
            value = "" if action.nargs == 0 else f" -x -a '{' '.join(_choices(action))}'" if action.choices else " -r"
            lines.append(f"{here} {' '.join(forms)}{value}")
    return "\n".join(lines) + "\n"


SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}


def _options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (action for action in parser._actions if action.option_strings)


def _positionals(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (action for action in parser._actions if not action.option_strings)


def _choices(action: argparse.Action) -> list[str]:
    return [str(choice) for choice in action.choices or ()]
