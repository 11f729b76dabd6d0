"""What imports what: the contracts in pyproject.toml hold the layers, this what they leave open."""

from __future__ import annotations

import grimp
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Return the groups of modules that import each other, directly or over others."""
    modules = sorted(imports)
    edges = [(modules.index(one), modules.index(other)) for one in modules for other in imports[one]]
    rows, columns = np.array(edges, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(len(modules), len(modules)))
    count, groups = connected_components(graph, connection="strong")
    found = [{modules[place] for place in np.flatnonzero(groups == group)} for group in range(count)]
    return [group for group in found if len(group) > 1]


def test_no_module_imports_itself_over_others_nor_over_the_init_of_its_package() -> None:
    """Also not in a function or for types alone; `acyclic_siblings` does not see what `__init__.py` imports."""
    graph = grimp.build_graph("dcgan_dist", "benchmarks", exclude_type_checking_imports=False)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    planted = {**imports, "dcgan_dist.errors": {"dcgan_dist.config"}}
    assert {"dcgan_dist.errors", "dcgan_dist.settings", "dcgan_dist.config"} in circles(planted)
    assert circles(imports) == []
