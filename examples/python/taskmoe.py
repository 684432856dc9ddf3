"""taskmoe from Python, on ctypes and numpy. `make shared` builds the library that it needs.

    import taskmoe
    model = taskmoe.train("my_tasks", experts=4, steps=500, lr_model=3e-3)
    model.answer("NAME", "an input")        # or a list of inputs
    model.answer_unseen("Write the word backwards.", "violin")
    model.route("NAME")                     # array (routed layers, experts)
    model.save("my.safetensors")            # taskmoe.load reads it

A failed call raises taskmoe.Error. Threads that call one model wait for each other; different
models run at the same time.
"""
import ctypes
import os
import signal
import sys
import threading
import weakref
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_int64, c_size_t, c_void_p

import numpy as np

VERSION, ERR_ARGUMENT, ERR_CANCELLED = 400, 1, 9  # of the header that the structs are of
ZERO_SHOT = "router", "nearest", "average"  # tmoe_zero_shot


class Error(Exception):
    """A call failed; the library's message."""


class Cancelled(Error):
    """The progress function stopped the training."""


# The structs; tests/test_python.py compares them with the header's. Settings are set by name.
class ContextConfig(ctypes.Structure):
    _fields_ = [("alloc_fn", c_void_p), ("free_fn", c_void_p), ("alloc_user", c_void_p),
                ("threads", c_int), ("parallel_fn", c_void_p), ("parallel_user", c_void_p),
                ("isa", c_int)]


class Settings(ctypes.Structure):  # room for a tmoe_config or a tmoe_training
    _fields_ = [("room", c_int64 * 64)]


class Parameter(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("values", POINTER(c_float)), ("rows", c_int), ("cols", c_int)]


class Progress(ctypes.Structure):
    """What a progress function is called with. Arrays and model are only there during the call."""
    model = None  # the one that is trained: it can answer and be saved
    _fields_ = [("step", c_int64), ("steps", c_int), ("label", c_char_p), ("trainer", c_void_p)]
    _fields_ += [(name, c_float) for name in (
        "loss validation_loss best_validation_loss gradient_norm "
        "lr_model lr_router lr_tasks temperature").split()]
    _fields_ += [("routed_layers", c_int), ("route_entropy", c_void_p), ("expert_use", c_void_p)]
    _fields_ += [(name, c_double) for name in ("tokens_per_second", "seconds", "seconds_left")]


ProgressFunction = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(Progress))
_name = {"win32": "taskmoe.dll", "darwin": "libtaskmoe.dylib"}.get(sys.platform, "libtaskmoe.so")
_here = os.path.dirname(os.path.abspath(__file__))
_paths = [os.path.join(_here, place, _name) for place in ("", "../../build")]
_lib = ctypes.CDLL(next(filter(os.path.exists, _paths), _name))  # or where the system looks
Result = type("Result", (c_int,), {})  # a tmoe_result whose message is the context's
# Result, name, parameters: r Result, i int, n size_t, p pointer, t text, - none, or as _TYPES says.
_TYPES = {"i": c_int, "n": c_size_t, "p": c_void_p, "t": c_char_p, "-": None, "r": Result,
          "Settings": Settings, "names": POINTER(c_char_p), "f": ProgressFunction}
for _call in """i version; p ctx_create p; - ctx_destroy p; i error p; t error_message p;
    Settings config_default; i config_set p t t; i config_get p t p n; t setting_name i i;
    Settings training_default; i training_set p t t; - training_set_progress p f p;
    i setting_values i t p n; p suite_load p t t; - suite_destroy p; p train p p p p;
    p trainer_model p; p model_load p t; r model_save p t; - model_destroy p; p model_config p;
    i model_task_count p; names model_task p i; i model_find_task p t; i routed_layers p;
    i model_parameter p i p; r route_of_task p i p; r route_unseen p t i p;
    r answer_many p t p p i p; r answer_many_unseen p t p p i p; - answers_free p p i""".split(";"):
    _result, _name, *_parameters = _call.split()
    _function = getattr(_lib, "tmoe_" + _name)
    _function.restype, _function.argtypes = _TYPES[_result], [_TYPES[p] for p in _parameters]
if _lib.tmoe_version() != VERSION:
    raise ImportError("the library's version is %d, not %d" % (_lib.tmoe_version(), VERSION))


def _bytes(text, encode=str.encode):  # UTF-8; of a path: os.fsencode
    if b"\0" in encode(text):
        raise ValueError("a text with a NUL character, where C would end it: %r" % text)
    return encode(text)


class _Context:
    """Serves one thread at a time, and lives as long as a model that is on it."""

    def __init__(self, threads):
        self.lock, config = threading.RLock(), ContextConfig(threads=threads)
        self.pointer = _lib.tmoe_ctx_create(byref(config))
        if not self.pointer:
            raise Error("no context with %s threads: 1 to 64, or no memory" % threads)
        weakref.finalize(self, _lib.tmoe_ctx_destroy, self.pointer)

    def check(self, good):  # returns it, or raises the context's error
        if not good:
            kind = Cancelled if _lib.tmoe_error(self.pointer) == ERR_CANCELLED else Error
            raise kind(_lib.tmoe_error_message(self.pointer).decode(errors="replace"))
        return good

    def free(self, model):  # while no other thread uses it
        with self.lock:
            _lib.tmoe_model_destroy(model)


def _set(config, training, name, value):  # in training, or else in config; the seed in both
    key, room = _bytes(name), ctypes.create_string_buffer(1000)
    text = _bytes(str(int(value) if isinstance(value, bool) else value))
    result, of = _lib.tmoe_training_set(byref(training), key, text), 1
    if result == ERR_ARGUMENT or name == "seed":
        result, of = _lib.tmoe_config_set(byref(config), key, text), 0
    if result == ERR_ARGUMENT:
        raise Error("neither tmoe_config nor tmoe_training has a field '%s'" % name)
    if result != 0:
        _lib.tmoe_setting_values(of, key, room, len(room))
        raise Error("%s is %s; it must be %s" % (name, value, room.value.decode()))


def train(folder, split=None, progress=None, threads=1, **settings):
    """Trains a model on a folder of tasks (see tmoe_suite_load). Settings are fields of tmoe_config
    and tmoe_training: experts=4, router="gru", steps=500. progress(p) is called after each step
    with a Progress; if it returns something true, training stops and Cancelled is raised, and
    p.model.save(path) keeps the model before that."""
    context, raised = _Context(threads), []
    config, training = _lib.tmoe_config_default(), _lib.tmoe_training_default()
    for name, value in settings.items():
        _set(config, training, name, value)

    def step(_, pointer):
        p = Progress.from_buffer_copy(pointer.contents)
        p.model = Model(context, _lib.tmoe_trainer_model(p.trainer), owned=False)
        try:
            return bool(progress and progress(p) or raised)
        except BaseException as error:  # cannot pass through C, so it is raised behind it
            raised.append(error)
            return 1
        finally:
            p.model.close()

    function = ProgressFunction(step)  # lives until the training ends
    _lib.tmoe_training_set_progress(byref(training), function, None)
    where, part = _bytes(folder, os.fsencode), split and _bytes(split, os.fsencode)
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler \
        and threading.current_thread() is threading.main_thread()
    if ours:  # Ctrl-C could raise in front of the `try` above, and be lost
        signal.signal(signal.SIGINT, lambda *_: raised.append(KeyboardInterrupt()))
    try:
        with context.lock:
            suite = context.check(_lib.tmoe_suite_load(context.pointer, where, part))
            model = _lib.tmoe_train(context.pointer, suite, byref(config), byref(training))
            trained = Model(context, model) if model else None
            _lib.tmoe_suite_destroy(suite)
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if raised:
        raise raised[0]
    return context.check(trained)


def load(path, threads=1):
    """The model of a file that save(), tmoe_model_save or tmoe_trainer_save wrote."""
    context, path = _Context(threads), _bytes(path, os.fsencode)
    return Model(context, context.check(_lib.tmoe_model_load(context.pointer, path)))


class Model:
    """Made by train() and load(); freed by close(), or when it is no longer used."""

    def __init__(self, context, pointer, owned=True):
        self._context, self._pointer = context, pointer
        self._free = weakref.finalize(self, context.free, pointer) if owned else int

    def close(self):
        self._free()
        self._pointer = None

    def _call(self, call, *arguments):
        with self._context.lock:
            if not self._pointer:
                raise Error("the model is closed")
            result = call(self._pointer, *arguments)
            if isinstance(result, Result):
                self._context.check(result.value == 0)
            return result

    @property
    def tasks(self):
        """The names of the tasks that it knows."""
        return [self._call(_lib.tmoe_model_task, i)[0].decode()
                for i in range(self._call(_lib.tmoe_model_task_count))]

    @property
    def settings(self):
        """The fields of its tmoe_config by name, as texts."""
        config, found = self._call(_lib.tmoe_model_config), {}
        room = ctypes.create_string_buffer(200)
        for name in iter(lambda: _lib.tmoe_setting_name(0, len(found)), None):
            _lib.tmoe_config_get(config, name, room, len(room))
            found[name.decode()] = room.value.decode()
        return found

    def save(self, path):
        self._call(_lib.tmoe_model_save, _bytes(path, os.fsencode))

    def parameters(self):
        """Copies of all parameters by name; FORMAT.md has the names."""
        found, p = {}, Parameter()
        while self._call(_lib.tmoe_model_parameter, len(found), byref(p)):
            values = np.ctypeslib.as_array(p.values, (p.rows, p.cols)).copy()
            found[p.name.decode()] = values if p.rows > 1 else values[0]
        return found

    def answer(self, task, inputs):
        """The answer of a known task to an input, or the answers to a list of inputs."""
        return self._answer(_lib.tmoe_answer_many, task, inputs)

    def answer_unseen(self, instruction, inputs):
        """The same of a task that is known by its instruction only."""
        return self._answer(_lib.tmoe_answer_many_unseen, instruction, inputs)

    def _answer(self, call, task, inputs):
        texts = [_bytes(text) for text in ([inputs] if isinstance(inputs, str) else inputs)]
        count, answers = len(texts), (c_char_p * len(texts))()
        self._call(call, _bytes(task), None, (c_char_p * count)(*texts), count, answers)
        found = [answer.decode(errors="replace") for answer in answers]
        self._call(_lib.tmoe_answers_free, answers, count)
        return found[0] if isinstance(inputs, str) else found

    def route(self, task):
        """The route of a known task: (routed layers, experts); each row sums to 1."""
        index = self._call(_lib.tmoe_model_find_task, _bytes(task))
        if index < 0:
            raise Error("the model knows no task '%s'" % task)
        return self._route(_lib.tmoe_route_of_task, index)

    def route_unseen(self, instruction, how="router"):
        """A route for a task that is known by its instruction only; how: one of ZERO_SHOT."""
        return self._route(_lib.tmoe_route_unseen, _bytes(instruction), ZERO_SHOT.index(how))

    def _route(self, call, *arguments):
        route = np.empty((self._call(_lib.tmoe_routed_layers), int(self.settings["experts"])), "f4")
        self._call(call, *arguments, route.ctypes.data)
        return route
