"""Counts what makes the header hard to read; called by tests/house.sh. Every count has a limit, most of them 0."""
import re
import sys

BYTES_MAX = 760000  # 560,000 is the aim for what version 0.1 could do
COLUMNS = 100
FUNCTION_LINES = 60
PARAMETERS = 8


def strip(text):
    """The text with comments and the insides of strings as spaces: every character keeps its place."""
    out, i = [], 0
    while i < len(text):
        if text.startswith('/*', i) or text.startswith('//', i):
            end = text.find('*/', i) + 2 if text[i + 1] == '*' else text.find('\n', i)
            out.append(re.sub(r'[^\n]', ' ', text[i:end]))
            i = end
        elif text[i] in '"\'':
            end = i + 1
            while text[end] != text[i]:
                end += 2 if text[end] == '\\' else 1
            out.append(text[i] + re.sub(r'[^\n]', '_', text[i + 1:end]) + text[i])
            i = end + 1
        else:
            out.append(text[i])
            i += 1
    return ''.join(out)


def blank_directives(code):
    """Preprocessor lines, continued ones too, as spaces."""
    return re.sub(r'^[ \t]*#(?:[^\n]*\\\n)*[^\n]*', lambda m: re.sub(r'[^\n]', ' ', m.group(0)), code, flags=re.M)


def closing(code, at, pair='()'):
    """Index of what closes the bracket at `at`."""
    depth = 0
    for i in range(at, len(code)):
        depth += (code[i] == pair[0]) - (code[i] == pair[1])
        if depth == 0:
            return i
    raise ValueError('no closing bracket')


def split(text, separator=','):
    """Parts between separators outside all brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in '([{') - (c in ')]}')
        if c == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return parts + [text[start:]]


def functions(code):
    """(name, index of its first character, of its body's {, of its }, number of parameters)"""
    found = []
    for m in re.finditer(r'^(?:[A-Za-z_][^;{}#]*?)\b(\w+)\)?(\([^;{}]*\))\s*\n?\{', code, flags=re.M):
        start = m.start()
        name, arguments = m.group(1), m.group(2)
        inner = re.match(r'.*?\bTMOEI_FN\(\s*(\w+)\)', m.group(0), flags=re.S)
        if inner:
            name = inner.group(1) + '_'
            arguments = m.group(0)[inner.end():]
        if name in ('if', 'for', 'while', 'switch'):
            continue
        first = m.group(0).index('(') if not inner else None
        whole = m.group(0) if not inner else arguments
        open_at = whole.index('(')
        if not inner:
            open_at = whole.index(name + '(') + len(name)
        parameters = whole[open_at + 1:closing(whole, open_at)].strip()
        count = 0 if parameters in ('', 'void') else len(split(parameters))
        body = m.end() - 1
        found.append((name, start, body, closing(code, body, '{}'), count))
    return found


def count(path):
    text = open(path).read()
    code = strip(text)
    lines = text.split('\n')
    code_lines = code.split('\n')
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)

    def line_of(index):
        low, high = 0, len(starts) - 1
        while low + 1 < high:
            middle = (low + high) // 2
            if starts[middle] <= index:
                low = middle
            else:
                high = middle
        return low + 1

    begin = text.index('/* ==== >>platform')
    fenced, off = set(), False
    for i, line in enumerate(lines):
        off = off and 'clang-format on' not in line or 'clang-format off' in line
        if off:
            fenced.add(i + 1)
    plain = blank_directives(code)
    found = {}

    def note(kind, line, what=''):
        found.setdefault(kind, []).append((line, what))

    for i, line in enumerate(lines, 1):
        if len(line) > COLUMNS:
            note('lines past 100 columns', i)

    # statements: semicolons of a line outside the heads of for loops
    heads = set()
    for m in re.finditer(r'\bfor \(', plain):
        end = closing(plain, m.end() - 1)
        heads.update(range(m.start(), end + 1))
        head = plain[m.end():end]
        parts = split(head, ';')
        if len(parts) == 3:
            if len(split(parts[2])) > 1:
                note('comma operators in loop heads', line_of(m.start()))
            declares = re.match(r'\s*(?:const )?(?:struct )?\w+ \**\w+ =', parts[0])
            if parts[0].strip() and not declares and len(split(parts[0])) > 1:
                note('comma operators in loop heads', line_of(m.start()))
            for piece in split(parts[0]):
                if len(re.findall(r'(?<![=!<>+\-*/|&])=(?!=)', piece)) > 1:
                    note('loop heads that do the work', line_of(m.start()))
            if re.search(r'(?<![=!<>+\-*/|&])=(?!=)', parts[1]):
                note('loop heads that do the work', line_of(m.start()))
            if re.search(r'\+\+\]|\+\+\)|\[\w+\+\+', parts[2]):
                note('loop heads that do the work', line_of(m.start()))
            if re.match(r'\s*;|\s*\{\s*\}', plain[end + 1:end + 40]):
                note('loop heads that do the work', line_of(m.start()))
    for i, line in enumerate(code_lines, 1):
        if i in fenced or starts[i - 1] < begin:
            continue
        row = plain[starts[i - 1]:starts[i] - 1]
        n = sum(1 for k, c in enumerate(row) if c == ';' and starts[i - 1] + k not in heads)
        if n > 1:
            note('lines of several statements', i)

    # conditions
    for m in re.finditer(r'\b(if|while) \(', plain):
        end = closing(plain, m.end() - 1)
        condition = plain[m.end():end]
        if line_of(m.start()) in fenced:
            continue
        if re.search(r'(?<![=!<>+\-*/|&])=(?!=)', condition) and not re.match(
                r'^!\(\w[\w>.\[\]-]* = [^=]*\)$', condition.strip(), flags=re.S):
            note('assignments in conditions', line_of(m.start()))
        if m.group(1) == 'while' and re.match(r'\s*\{\s*\}|\s*;', plain[end + 1:end + 40]) and not re.search(
                r'\}\s*$', plain[:m.start()]):
            note('loop heads that do the work', line_of(m.start()))

    # comma operators as statements: two assignments, the first of which declares nothing
    for m in re.finditer(r'^ +\*?[a-z]\w*(?:(?:->|\.)\w+|\[[^\]]*\])* [-+*/|&]?= [^;{}]*;', plain, flags=re.M):
        if line_of(m.start()) not in fenced and any(
                re.match(r'\s*\*?\w[\w>.\[\]-]* [-+*/|&]?= ', part) for part in split(m.group(0))[1:]):
            note('lines of several statements', line_of(m.start()))

    # chains of ?: a second ? in the same expression, not inside other brackets or arguments
    for m in re.finditer(r'\?', plain):
        i = line_of(m.start())
        if i in fenced or m.start() < begin:
            continue
        depth, k = 0, m.end()
        while k < len(plain):
            c = plain[k]
            if c in '([{':
                depth += 1
            elif c in ')]}':
                depth -= 1
                if depth < 0:
                    break
            elif depth == 0 and c in ';,':
                break
            elif c == '?' and (depth == 0 or re.search(r'[?:] \($', plain[m.start():k].rsplit('(', 1)[0] + '(')):
                note('chains of ?:', i)
                break
            k += 1

    rooms = [(m.start(), m.group(1)) for m in re.finditer(r'/\* ==== >>(\w+)', text)]
    order = {name: i for i, (_, name) in enumerate(rooms)}

    def room_of(index):
        name = None
        for at, room in rooms:
            if at <= index:
                name = room
        return name

    where = {}
    defined = functions(plain)
    previous_end = None
    for name, start, body, end, parameters in defined:
        if start < begin:
            continue
        i, last = line_of(start), line_of(end)
        if i in fenced:
            continue
        if last - i + 1 > FUNCTION_LINES:
            note('functions above 60 lines', i, '%s: %d' % (name, last - i + 1))
        if parameters > PARAMETERS:
            note('functions above 8 parameters', i, '%s: %d' % (name, parameters))
        top = i
        while top > 1 and (lines[top - 2].startswith(('/*', ' *', '#')) or re.match(r'^(TMOEI_PRINTF|__attribute__)', lines[top - 2])):
            top -= 1
        if previous_end and top == previous_end + 1 and lines[top - 2].startswith('}'):
            note('functions without a blank line before', i, name)
        previous_end = last
        where[name] = room_of(start)
    for m in re.finditer(r'\b(tmoei?_\w+)\b', plain):
        name = m.group(1)
        if m.start() < begin or name not in where:
            continue
        here = room_of(m.start())
        if here and order[where[name]] > order[here]:
            note('calls from a room to one below it', line_of(m.start()), '>>%s uses %s of >>%s' % (here, name, where[name]))
    for m in re.finditer(r'clang-format off', text):
        if room_of(m.start()) != 'kernels':
            note('clang-format off outside >>kernels', line_of(m.start()))
    for i in range(1, len(lines)):
        if not lines[i].strip() and not lines[i - 1].strip():
            note('two blank lines in a row', i + 1)
    return found, len(text.encode()), text, rooms, begin


KINDS = ['lines past 100 columns', 'lines of several statements', 'functions above 60 lines', 'functions above 8 parameters',
         'chains of ?:', 'assignments in conditions', 'comma operators in loop heads', 'loop heads that do the work',
         'functions without a blank line before', 'calls from a room to one below it', 'clang-format off outside >>kernels',
         'two blank lines in a row']


def main():
    verbose = '-v' in sys.argv
    paths = [a for a in sys.argv[1:] if a != '-v']
    path = paths[0] if paths else 'taskmoe.h'
    found, size, text, rooms, begin = count(path)
    bad = 0
    for kind in KINDS:
        n = len(found.get(kind, []))
        bad += n
        print('%6d  %s' % (n, kind))
        for line, what in found.get(kind, []) if verbose else []:
            print('        %s:%d %s' % (path, line, what))
    print('%6d  bytes (less than %d)' % (size, BYTES_MAX))
    print('%6d  lines, %d of them blank' % (text.count('\n'), sum(not l.strip() for l in text.split('\n'))))
    bad += size >= BYTES_MAX
    print('house: %s' % ('in order' if not bad else '%d places to mend' % bad))
    return bad != 0


sys.exit(main())
