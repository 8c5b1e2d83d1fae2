"""`bora-sweep generate`."""

import argparse

from rich.markup import escape

from bora_sweep.commands.common import DONE, add_trial, out
from bora_sweep.errors import InputError, visible
from bora_sweep.runs.places import is_place
from bora_sweep.runs.storage import folder_at

TEXT = "Generate text from adapters of tasks, beside that of _global and of the base model."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_trial(parser)
    text = (
        "PROMPT: the beginning of the text, or of a row with a prompt its prompt, or with --chat what the user says; "
        "beside it where the base is now, if it has moved: model.name=…"
    )
    parser.add_argument("settings", nargs="*", default=[], metavar="PROMPT|model.name=PLACE", help=text)
    text = "PROMPT is a user's message, written by the chat template; so it is where the run has conversations"
    parser.add_argument("--chat", action="store_true", help=text)
    parser.add_argument("--system", metavar="TEXT", help="with --chat: the system's message before it")
    text = "conversations, one JSON list of messages (or object with `messages`) per line; each is replied to"
    parser.add_argument("--messages", metavar="FILE.jsonl", help=text)
    text = "the value of a further column that data.prompt names; repeat the option for several"
    parser.add_argument("--column", action="append", default=[], metavar="NAME=TEXT", help=text)
    text = "a task, or _global for what all share; repeat the option for several"
    parser.add_argument("--task", action="append", required=True, metavar="NAME", help=text)
    text = "most tokens to generate; default: 64"
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help=text)
    text = "0 always takes the likeliest token; default: 1"
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help=text)
    text = "random seed, the same for each adapter; default: 0"
    parser.add_argument("--seed", type=int, default=0, metavar="S", help=text)


def run(parsed: argparse.Namespace) -> int:
    """Generate text from several adapters, one below the other."""
    from bora_sweep.serve.generate import Sampling, prompts_of
    from bora_sweep.serve.generate import generate as texts_of

    places = [word for word in parsed.settings if is_place(word)]
    prompt, *more = [word for word in parsed.settings if not is_place(word)] or [None]
    if more:
        raise InputError(f"PROMPT {more[0]!r}: is one too many; write quotes around a prompt of several words")
    sampling = Sampling(parsed.max_new_tokens, parsed.temperature, parsed.seed)
    prompts = prompts_of(prompt, chat=parsed.chat, system=parsed.system, file=parsed.messages, columns=parsed.column)
    replies = texts_of(folder_at(parsed.run), prompts, parsed.task, parsed.trial, sampling, settings=places)
    for number, (prompt, texts) in enumerate(replies):
        out.print(("\n" if number else "") + escape(visible(prompt.shown)))
        for name, text in texts:
            out.print(f"\n[bold]== {escape(visible(name))} ==[/]\n{escape(visible(text))}")
    return DONE
