"""What bench_speculation lets a model say: programs written again with one name changed, and stories.

``code`` and ``prose`` are the texts that the drafter's constants were chosen on; all others were held out. Of a program
the first line is given, because the small models that this is measured with need that.
"""

from __future__ import annotations

PYTHON = """
def shrink(values, {name}):
    result = []
    for value in values:
        if value > {name}:
            result.append(value - {name})
        elif value < -{name}:
            result.append(value + {name})
        else:
            result.append(0)
    return result

def report(values, {name}):
    before = sum(values)
    after = sum(shrink(values, {name}))
    print("before:", before)
    print("after:", after)
    return shrink(values, {name}), after - before

def compare(first, second, {name}):
    one, two = shrink(first, {name}), shrink(second, {name})
    for a, b in zip(one, two):
        if a != b:
            return False
    return True
"""
C = """
static int insert(struct node **{name}, int key) {{
    struct node *fresh = malloc(sizeof *fresh);
    if (fresh == NULL)
        return -1;
    fresh->key = key;
    fresh->next = NULL;
    while (*{name} != NULL && (*{name})->key < key)
        {name} = &(*{name})->next;
    fresh->next = *{name};
    *{name} = fresh;
    return 0;
}}

static void drop(struct node **{name}) {{
    while (*{name} != NULL) {{
        struct node *next = (*{name})->next;
        free(*{name});
        *{name} = next;
    }}
}}
"""
JAVASCRIPT = """
async function loadOrders({name}, page) {{
  const response = await fetch(`/api/orders?user=${{{name}.id}}&page=${{page}}`);
  if (!response.ok) {{
    throw new Error(`cannot load the orders of ${{{name}.name}}`);
  }}
  const orders = await response.json();
  for (const order of orders) {{
    order.owner = {name}.name;
    order.total = order.items.reduce((sum, item) => sum + item.price, 0);
  }}
  {name}.orders = orders;
  return {name};
}}

function summary({name}) {{
  const total = {name}.orders.reduce((sum, order) => sum + order.total, 0);
  return `${{{name}.name}} has ${{{name}.orders.length}} orders, ${{total}} in all`;
}}
"""
SQL = """
CREATE TABLE {name} (
    id INTEGER PRIMARY KEY,
    title TEXT NOT NULL,
    author TEXT NOT NULL,
    price INTEGER NOT NULL,
    stock INTEGER NOT NULL
);

CREATE INDEX {name}_by_author ON {name} (author);

INSERT INTO {name} (id, title, author, price, stock) VALUES (1, 'North', 'Heaney', 12, 3);
INSERT INTO {name} (id, title, author, price, stock) VALUES (2, 'Ariel', 'Plath', 10, 5);

SELECT author, COUNT(*), SUM(price * stock) FROM {name} GROUP BY author ORDER BY author;
UPDATE {name} SET stock = stock - 1 WHERE id = 2 AND stock > 0;
DELETE FROM {name} WHERE stock = 0;
"""


def renaming(language: str, program: str, old: str, new: str) -> str:
    """The chat in which *old* becomes *new*, as far as the first line of the answer."""
    first_line = program.format(name=new).strip().splitlines()[0]
    return (
        f"<|im_start|>user\nRepeat this program with the name `{old}` changed to `{new}`:\n\n"
        f"```{language}{program.format(name=old)}```<|im_end|>\n<|im_start|>assistant\n"
        f"Here is the program with the name changed:\n\n```{language}\n{first_line}"
    )


CODE = {
    "code": renaming("python", PYTHON, "limit", "bound"),
    "c": renaming("c", C, "list", "head"),
    "javascript": renaming("javascript", JAVASCRIPT, "user", "customer"),
    "sql": renaming("sql", SQL, "books", "volumes"),
}
PROSE = {
    "prose": "It was late in autumn when the old woman first saw the light on the hill. She put her basket down and",
    "letter": "Dear Martha,\n\nThank you for the parcel, which came on Tuesday. The children have already eaten the",
    "essay": "Why do some cities grow while others, no further from the sea and no worse governed, stay small? One",
    "dialogue": '"You cannot mean to sail in this weather," said the captain, and looked up. "I do," said Anna.',
}
