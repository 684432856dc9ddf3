#!/usr/bin/env python3
"""examples/python: the binding computes what C computes, and FORMAT.md says what is in a file.

usage: python3 tests/test_python.py BUILD [FILTER]      BUILD has the shared library and twin
"""
import gc
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import traceback

import numpy as np

build = sys.argv[1]
here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "..", "examples", "python"))
sys.dont_write_bytecode = True
import taskmoe  # noqa: E402

with open(os.path.join(here, "..", "examples", "python", "FORMAT.md"), encoding="utf-8") as file:
    PAGE = file.read()
FOLDER, TEMPORARY = os.path.join(build, "python_tasks"), os.path.join(build, "python_out")
SMALL = {"width": 32, "encoder_ffn": 64, "decoder_ffn": 64, "encoder_layers": 1, "decoder_layers": 1,
         "experts": 3, "steps": 80}
INPUTS = ["abc", "bca", "c"]  # as in twin.c
INSTRUCTION = "Write the last letter twice."


def write_tasks():
    shutil.rmtree(FOLDER, ignore_errors=True)
    os.makedirs(FOLDER)
    os.makedirs(TEMPORARY, exist_ok=True)
    words = [a + b + c for a in "abc" for b in ("", "a", "b", "c") for c in ("", "b", "c")]
    for name, answer in (("upper", str.upper), ("last_letter", lambda word: word[-1])):
        with open(os.path.join(FOLDER, name + ".tsv"), "w", encoding="utf-8") as file:
            file.writelines("%s\t%s\n" % (word, answer(word)) for word in words)


def out(name):
    return os.path.join(TEMPORARY, name)


def content(path):
    with open(path, "rb") as file:
        return file.read()


def header(path):
    """A file's header, and the tensors' bytes."""
    everything = content(path)
    end = 8 + int.from_bytes(everything[:8], "little")
    return json.loads(everything[8:end]), everything[end:]


def tensors(path):
    head, data = header(path)
    return {name: np.frombuffer(data[slice(*t["data_offsets"])], "<f4").reshape(t["shape"])
            for name, t in head.items() if name != "__metadata__"}


def twin(path, **settings):
    """The lines that the C program prints when it trains with these settings, without the layout;
    and those of the layout."""
    arguments = ["%s=%s" % setting for setting in settings.items()]
    printed = subprocess.run([os.path.join(build, "twin"), FOLDER, path] + arguments, check=True,
                             stdout=subprocess.PIPE).stdout.decode(errors="replace").split("\n")
    return ([line.split("\t") for line in printed if "\t" in line],
            dict(line.split(" ")[1:] for line in printed if re.match("(layout|size|value) ", line)))


def raises(kind, part, call):
    try:
        call()
    except kind as error:
        assert part in str(error), "the message is: %s" % error
        return error
    raise AssertionError("no %s was raised" % kind.__name__)


def train(**settings):
    return taskmoe.train(FOLDER, **dict(SMALL, **settings))


# ---- the binding ----


def test_the_structs_are_those_of_the_header():
    numbers = {name: int(value) for name, value in twin(out("layout"), steps=1)[1].items()}
    mirrored = (("tmoe_ctx_config", taskmoe.ContextConfig), ("tmoe_progress", taskmoe.Progress),
                ("tmoe_parameter", taskmoe.Parameter))
    for name, struct in mirrored:
        ours = {"%s.%s" % (name, field): getattr(struct, field).offset for field, _ in struct._fields_}
        theirs = {key: value for key, value in numbers.items() if key.startswith(name + ".")}
        assert ours == theirs, "%s: here %s, in the header %s" % (name, ours, theirs)
        assert taskmoe.ctypes.sizeof(struct) == numbers[name]
    assert numbers["tmoe_task.name"] == 0
    room = taskmoe.ctypes.sizeof(taskmoe.Settings)
    for name in ("tmoe_config", "tmoe_training"):
        assert room >= numbers[name], "%s has %d bytes, room is %d" % (name, numbers[name], room)
    assert numbers["TMOE_VERSION"] == taskmoe.VERSION
    assert numbers["TMOE_ERR_ARGUMENT"] == taskmoe.ERR_ARGUMENT
    assert numbers["TMOE_ERR_CANCELLED"] == taskmoe.ERR_CANCELLED
    assert (numbers["TMOE_SETTINGS_CONFIG"], numbers["TMOE_SETTINGS_TRAINING"]) == (0, 1)
    for i, how in enumerate(taskmoe.ZERO_SHOT):
        assert numbers["TMOE_ZERO_SHOT_" + how.upper()] == i


def test_python_trains_and_answers_as_c_does():
    lines, _ = twin(out("c"), **SMALL)
    assert {line[3] for line in lines if line[0] != "route"} >= {"c", "ABC"}, "it has learned nothing"
    trained = train(threads=2)
    trained.save(out("python"))
    assert content(out("python")) == content(out("c"))
    for model in (trained, taskmoe.load(out("c"))):
        routes = {name: model.route(name) for name in model.tasks}
        for i, how in enumerate(taskmoe.ZERO_SHOT):
            routes[str(i)] = model.route_unseen(INSTRUCTION, how)
        asked = 0
        for kind, name, what, *answer in lines:
            if kind == "route":
                assert np.array_equal(routes[name].ravel(), np.array(what.split(), np.float32)), name
            else:
                ask = model.answer if kind == "answer" else model.answer_unseen
                assert [ask(name, what)] == answer, (name, what)
                assert ask(name, INPUTS)[INPUTS.index(what)] == answer[0], (name, what)
            asked += 1
        assert asked == 3 * len(INPUTS) + 5 and model.tasks == ["last_letter", "upper"]
    assert trained.answer("upper", []) == []


def test_settings_go_to_both_structs_and_a_wrong_one_is_named():
    settings = dict(SMALL, seed=7, router="gru", optimiser="adamw", task_input="text|vector", steps=3,
                    vocabulary=270)
    twin(out("c"), **settings)
    model = train(**settings)
    model.save(out("python"))
    assert content(out("python")) == content(out("c"))
    assert (model.settings["router"], model.settings["seed"]) == ("gru", "7")
    assert model.settings["task_input"] == "text|vector"
    train(**dict(settings, word_pairs=True, seed=8)).save(out("other"))
    assert content(out("other")) != content(out("c"))
    raises(taskmoe.Error, "'expert'", lambda: train(expert=4))
    raises(taskmoe.Error, "router is grr; it must be linear, ", lambda: train(router="grr"))
    raises(taskmoe.Error, "experts is 65; it must be a whole number, 1 to 64", lambda: train(experts=65))
    raises(taskmoe.Error, "lr_model is -1", lambda: train(lr_model=-1))


def test_the_progress_function_sees_every_step_and_can_stop_and_save():
    seen = []

    def progress(p):
        seen.append((p.step, p.steps, p.loss, p.lr_model))
        answer = p.model.answer("upper", "abc")
        if p.step == 80:
            assert answer == "ABC", answer
        kept.append(p)

    kept = []
    train(progress=progress)
    assert [(step, steps) for step, steps, _, _ in seen] == [(i, 80) for i in range(1, 81)]
    assert seen[-1][2] < seen[0][2] / 3 and max(rate for _, _, _, rate in seen) <= np.float32(3e-3)
    assert [(p.step, p.steps, p.loss, p.lr_model) for p in kept] == seen
    raises(taskmoe.Error, "closed", lambda: kept[0].model.answer("upper", "abc"))

    def stop(p):
        if p.step == 5:
            p.model.save(out("kept"))
        return p.step == 5

    raises(taskmoe.Cancelled, "after step 5", lambda: train(progress=stop))
    assert taskmoe.load(out("kept")).tasks == ["last_letter", "upper"]
    raises(ZeroDivisionError, "", lambda: train(progress=lambda p: p.step == 3 and 1 // 0))
    raises(KeyError, "no such key", lambda: train(progress=lambda p: {}["no such key"]))


def test_ctrl_c_stops_a_training_that_has_no_progress_function():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
    timer = threading.Timer(0.1, signal.raise_signal, (signal.SIGINT,))
    original, steps = taskmoe._lib.tmoe_trainer_model, []

    def first_step_starts_the_timer(trainer):
        steps.append(trainer)
        if len(steps) == 1:
            timer.start()
        return original(trainer)

    taskmoe._lib.tmoe_trainer_model = first_step_starts_the_timer
    try:
        raises(KeyboardInterrupt, "", lambda: train(steps=5000))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert 0 < len(steps) < 5000, "it was not stopped"
    finally:
        timer.join()
        taskmoe._lib.tmoe_trainer_model = original
        signal.signal(signal.SIGINT, before)


def test_errors_are_exceptions_with_the_librarys_message():
    model = train(steps=1)
    raises(taskmoe.Error, "nearest: upper", lambda: model.answer("uper", "a"))
    raises(taskmoe.Error, "no task 'uper'", lambda: model.route("uper"))
    raises(taskmoe.Error, "at most 128", lambda: model.answer("upper", "a" * 200))
    raises(taskmoe.Error, "cannot be opened", lambda: taskmoe.load(out("none")))
    raises(taskmoe.Error, "is not a folder", lambda: taskmoe.train(out("none")))
    raises(taskmoe.Error, "width = 33", lambda: train(width=33))
    raises(taskmoe.Error, "none", lambda: model.save(out("none/model")))
    raises(taskmoe.Error, "65 threads", lambda: taskmoe.load(out("c"), threads=65))
    for call in (lambda: model.answer("upper", "a\0b"), lambda: model.save(out("a\0b")),
                 lambda: taskmoe.load(out("a\0b")), lambda: taskmoe.train(FOLDER + "\0")):
        raises(ValueError, "NUL", call)
    assert not issubclass(taskmoe.Error, ValueError)
    model.close()
    model.close()
    for call in (lambda: model.answer("upper", "a"), lambda: model.route("upper"), lambda: model.tasks,
                 lambda: model.save(out("none")), model.parameters):
        raises(taskmoe.Error, "closed", call)


def test_parameters_are_those_of_the_file():
    model = train(steps=2)
    parameters = model.parameters()
    model.save(out("python"))
    read = tensors(out("python"))
    assert list(parameters) == list(read) and len(read) > 60
    for name, values in parameters.items():
        assert values.dtype == np.float32 and np.isfinite(values).all(), name
        assert np.array_equal(values, read[name]), name
        values[:] = 0  # a copy: the model does not change
    assert parameters["tokens.weight"].shape == (int(model.settings["vocabulary"]), SMALL["width"])
    assert 4 * sum(values.size for values in read.values()) < os.path.getsize(out("python"))
    again = model.parameters()["encoder.0.expert.0.fc1.weight"]
    model.close()
    assert again.std() > 0.1 and np.array_equal(again, read["encoder.0.expert.0.fc1.weight"])


def test_models_and_contexts_are_freed_once_and_in_order():
    library, freed = taskmoe._lib, []
    originals = {name: getattr(library, name) for name in ("tmoe_model_destroy", "tmoe_ctx_destroy")}

    def counting(name):
        return lambda pointer: (freed.append(name[5:-8]), originals[name](pointer))

    try:
        for name in originals:
            setattr(library, name, counting(name))
        train(steps=1)
        assert freed == ["model", "ctx"], freed
        model = train(steps=1)
        model.close()
        model.close()
        assert freed == ["model", "ctx"] + ["model"], freed
        del model
        assert freed == ["model", "ctx"] * 2, freed
        model = train(steps=1)
        model.itself = model  # a cycle: the collector frees it
        del model
        gc.collect()
        assert freed == ["model", "ctx"] * 3, freed
        raises(taskmoe.Error, "", lambda: taskmoe.load(out("none")))
        raises(taskmoe.Cancelled, "", lambda: train(progress=lambda p: True))
        gc.collect()
        assert freed[6:] == ["ctx", "ctx"], freed  # the library frees a model that is not finished
    finally:
        for name, original in originals.items():
            setattr(library, name, original)


def test_threads_that_share_a_model_wait_for_each_other():
    model = train()
    inputs = ["abcabcabcabc"[:1 + i % 12] for i in range(48)]
    alone = {task: model.answer(task, inputs) for task in model.tasks}
    busy, overlaps, wrong = [], [], []
    original = taskmoe._lib.tmoe_answer_many

    def answer_many(*arguments):
        overlaps.append(bool(busy))
        busy.append(1)
        try:
            return original(*arguments)
        finally:
            busy.pop()

    def ask(task):
        for _ in range(20):
            if model.answer(task, inputs) != alone[task]:
                wrong.append(task)

    taskmoe._lib.tmoe_answer_many = answer_many
    try:
        threads = [threading.Thread(target=ask, args=(task,)) for task in model.tasks * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        taskmoe._lib.tmoe_answer_many = original
    assert len(overlaps) == 80 and not any(overlaps) and not wrong


# ---- what is written about it ----


def test_the_lines_of_the_readme_and_of_the_module_run():
    with open(os.path.join(here, "..", "README.md"), encoding="utf-8") as file:
        readme = re.search(r"```python\n(.*?)```", file.read(), re.S).group(1)
    module = re.sub("(?m)^    ", "", re.search(r"(?ms)^    import.*?\n\n", taskmoe.__doc__).group(0))
    for code in readme, module:
        assert code.count("\n") > 5 and "save" in code
        for word, instead in (("my_tasks", FOLDER), ('"NAME"', '"upper"'), ("steps=500", "steps=2"),
                              ("my.safetensors", out("readme"))):
            assert word in code, word
            code = code.replace(word, instead)
        if os.path.exists(out("readme")):
            os.remove(out("readme"))
        values = {"print": lambda step, loss: seen.append((step, loss))}
        seen = []
        exec(compile(code, "README.md", "exec"), values)
        assert len(seen) == (2 if "progress" in code else 0)
        assert np.array_equal(taskmoe.load(out("readme")).route("upper"), values["model"].route("upper"))


def table(heading):
    """The rows of the table under this line of column names, cells without backquotes."""
    rows = PAGE.split(heading + "\n", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows]


def metadata(path):
    return header(path)[0]["__metadata__"]


def test_the_route_on_the_page_is_the_librarys():
    code = re.search(r"```python\n(.*?)```", PAGE, re.S).group(1)
    assert code.count("\n") <= 25
    page = {}
    exec(compile(code, "FORMAT.md", "exec"), page)
    for settings in ({}, {"temperature": 3, "temperature_decay": 0.01, "temperature_min": 0.5},
                     {"temperature": 3, "temperature_decay": 0.01, "temperature_min": 2},
                     {"temperature": 1e-4, "temperature_min": 1e-4}, {"vector_length": 0, "steps": 20},
                     {"vectors": "learned"}, {"vectors": "given", "selection": "gumbel"},
                     {"expert_places": "decoder", "expert_kind": "ffn", "router_hidden": 1}):
        model = train(encoder_layers=2, **settings)
        model.save(out("route"))
        for task in model.tasks:
            ours, page_says = model.route(task), page["route"](out("route"), task)
            assert ours.shape == page_says.shape, settings
            off = np.abs(ours - page_says).max()
            assert off < 1e-5, "%s, %s: off by %g" % (settings, task, off)
            assert ours.shape[0] == (1 if settings.get("expert_places") else 3)
    assert np.ptp(ours) > 1e-3


def test_the_words_on_the_page_are_the_settings():
    library, room = taskmoe._lib, taskmoe.ctypes.create_string_buffer(200)
    config = taskmoe.byref(library.tmoe_config_default())
    rows = dict(table("| field | numbers |"))
    for field, cell in rows.items():
        pairs = [word.split(" ") for word in cell.replace("bits: ", "").split(", ")]
        for number, word in pairs:
            assert library.tmoe_config_set(config, field.encode(), number.encode()) == 0, (field, number)
            assert library.tmoe_config_get(config, field.encode(), room, len(room)) == 0
            assert room.value.decode() == word, (field, number, word, room.value)
        library.tmoe_setting_values(0, field.encode(), room, len(room))
        words = re.sub("none, or some of ", "", room.value.decode()).replace("|", ", ").split(", ")
        assert words == [word for _, word in pairs], (field, words)
    enums = []
    for name in iter(lambda: library.tmoe_setting_name(0, len(enums)), None):
        library.tmoe_setting_values(0, name, room, len(room))
        enums.append(name.decode() if not re.search("[0-9]", room.value.decode()) else "")
    assert sorted(filter(None, enums)) == sorted(rows), enums


def test_the_metadata_on_the_page_is_in_the_file():
    train(steps=1).save(out("python"))
    about = metadata(out("python"))
    keys = [key for row in table("| key | what |") for key in row[0].split(", ")]
    assert sorted(about) + ["trainer", "training"] == sorted(keys[:-2]) + sorted(keys[-2:])
    values = dict(table("| key | what |"))["format, version"]
    assert values.startswith("%s and %s;" % (about["format"], about["version"])), values
    config = json.loads(about["config"])
    assert isinstance(config.pop("seed"), str) and all(isinstance(v, (int, float)) for v in config.values())
    assert json.loads(about["tasks"])[3:] == ["upper", "none", "upper"]


def test_what_the_page_says_of_a_checkpoint_is_in_it():
    def save(p):
        result = taskmoe._lib.tmoe_trainer_save(taskmoe.c_void_p(p.trainer), out("checkpoint").encode())
        assert result == 0

    line = re.search("(?m)^A checkpoint also has (.*)[.]$", PAGE).group(1)
    names = re.findall("`([^`]*)`", line)
    for settings, count in (({}, 2), ({"evaluate_every_steps": 1, "validation_lines": 2}, 3)):
        train(progress=save, **dict(settings, steps=1)).save(out("python"))
        head, model = header(out("checkpoint"))[0], header(out("python"))[0]
        assert sorted(set(head) - set(model)) == sorted(names[:count])
        assert set(model) < set(head)
        about = head["__metadata__"]
        assert set(about) - set(model["__metadata__"]) == {"training", "trainer"}
        assert json.loads(about["training"])["steps"] == 1 and about["trainer"].startswith("1 ")
        assert taskmoe.load(out("checkpoint")).tasks == ["last_letter", "upper"]


def sizes(config):
    """The values of the letters in the page's shapes, by the config's words."""
    routed = sum(int(config[side + "_layers"]) for side in ("encoder", "decoder")
                 if side in config["expert_places"])
    values = {name: int(value) for name, value in config.items() if value.isdigit()}
    specific = config["router"].endswith("layer_specific")
    values.update(R=routed, S=values["router_hidden" if specific else "vector_width"], tasks=2,
                  G={"g": 3, "l": 4}.get(config["router"][0], 1))
    return values


def has_shape(cell, shape, values, decoder):
    words = cell.replace("ffn", ("decoder" if decoder else "encoder") + "_ffn").split(", ")
    expected = [math.prod(int(w) if w.isdigit() else values[w] for w in word.split()) for word in words]
    return list(shape) == expected or expected[0] == 1 and list(shape) == expected[1:]


def test_the_tensors_on_the_page_are_those_of_the_file():
    rows, used = table("| name | shape | what |"), set()
    routers = [cell.split(" ")[1] for cell in dict(table("| field | numbers |"))["router"].split(", ")]
    assert routers.pop() == "own"  # which only a program can give
    cases = [{"router": router} for router in routers]
    cases += [{"expert_kind": "ffn", "positions": "learned"}, {"experts": 1}, {"task_input": "none"},
              {"expert_places": "decoder", "vectors": "learned", "encoder_ffn": 48, "norm": "post"}]
    for settings in cases:
        model = train(**dict({"steps": 1, "router_hidden": 8, "vector_width": 24}, **settings))
        values = sizes(model.settings)
        model.save(out("python"))
        parameters = tensors(out("python"))
        for name, tensor in parameters.items():
            owner, _, part = name.rpartition(".")
            found = False
            for i, (names, shape, what) in enumerate(rows):
                patterns = [re.escape(n).replace("PLACE", r"(en|de)coder\.\d+(\.expert\.\d+)?").replace(
                    r"\.L\.", r"\.\d+\.") for n in names.split(", ")]
                if not any(re.fullmatch(pattern, owner) for pattern in patterns):
                    continue
                assert ("no bias" in what) == (owner + ".bias" not in parameters), name
                assert ("a bias only" in what) == (owner + ".weight" not in parameters), name
                if part == "bias":
                    shape = shape.split(", ")[0]
                if has_shape(shape, tensor.shape, values, owner.startswith("decoder")):
                    used.add(i)
                    found = True
            assert found, "%s %s with %s" % (name, tensor.shape, settings)
    assert len(used) == len(rows), [row for i, row in enumerate(rows) if i not in used]


def main():
    passed = failed = 0
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    write_tasks()
    for name, test in list(globals().items()):
        if not name.startswith("test_") or wanted not in name:
            continue
        try:
            test()
            passed += 1
        except Exception:
            traceback.print_exc(file=sys.stdout)
            print("FAILED " + name)
            failed += 1
    print("python: %d passed, %d failed" % (passed, failed))
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
