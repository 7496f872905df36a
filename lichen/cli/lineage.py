"""`lichen lineage`: who took what from whom, and what rests on whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from lichen.cli import options
from lichen.cli.output import plain_table, print_json, print_table, print_text, say, say_whole
from lichen.errors import LichenError

if TYPE_CHECKING:
    from lichen.atlas.catalogue.model import Catalogue
    from lichen.atlas.lineage.graph import Edge, Graph
    from lichen.atlas.lineage.risk import Exchange, Risk


def lineage(
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL|TECHNIQUE]", help="Only what has to do with it.")
    ] = None,
    risk: Annotated[bool, typer.Option("--risk", help="What rests on whom, in numbers.")] = False,
    sources: Annotated[bool, typer.Option("--sources", help="Say where each edge is from.")] = False,
    as_of: options.AsOf = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, always with sources.")] = False,
    as_graphml: Annotated[bool, typer.Option("--graphml", help="GraphML, for Gephi or networkx.")] = False,
    as_mermaid: Annotated[bool, typer.Option("--mermaid", help="A Mermaid flowchart.")] = False,
) -> None:
    """The tree of techniques and models: who took what from whom, and on what evidence."""
    from lichen.atlas.catalogue.model import load as load_catalogue
    from lichen.atlas.lineage.formats import to_graphml, to_json, to_mermaid
    from lichen.atlas.lineage.graph import load
    from lichen.facts.record import parse_as_of

    if as_json + as_graphml + as_mermaid > 1:
        raise LichenError("--json, --graphml and --mermaid are three forms of one graph: choose one")
    if risk and (name or as_graphml or as_mermaid):
        raise LichenError("--risk is about the whole graph, as text or --json: leave the rest out")
    catalogue = load_catalogue(as_of=parse_as_of(as_of))
    graph = load(catalogue)
    if risk:
        _print_risk(graph, catalogue, as_json)
        return
    part = graph if name is None else graph.around(name)
    if as_json:
        print_json(to_json(part))
    elif as_graphml:
        print_text(to_graphml(part))
    elif as_mermaid:
        print_text(to_mermaid(part))
    else:
        say(*(_overview(graph, sources) if name is None else [_around(graph, name, sources)]))
        say(
            f"As of {graph.as_of}. In brackets is the evidence. That of code follows the order of a library "
            "and is no proof that an idea was taken." + ("" if sources else " Where each is from: --sources.")
        )


def _overview(graph: Graph, sources: bool) -> Iterator[Tree]:
    """All techniques under those that they develop, and all models under the one that they come from."""
    for title, kind, of in (("Techniques", "develops", graph.techniques), ("Models", "from", graph.models)):
        tree, links = Tree(Text(title, "bold")), _nearest(graph, kind, sources)
        for name in of:
            if not any(below == name for _, below in links):
                _grow(tree.add(_node(graph, name)), graph, name, links)
        yield tree


Links = dict[tuple[str, str], str]  # from a node to one below it, with all the evidence for that


def _links(graph: Graph, kind: str, sources: bool) -> Links:
    found: Links = {}
    for edge in graph.edges:
        if edge.kind == kind:
            pair = edge.ancestor, edge.descendant
            source = f" {edge.source}" if sources else ""
            found[pair] = found.get(pair, "") + f" [{edge.evidence}{_detail(edge)}]{source}"
    return found


def _nearest(graph: Graph, kind: str, sources: bool) -> Links:
    """Of the links of `kind` to each node, the one from its youngest ancestor."""
    links = _links(graph, kind, sources)
    youngest: dict[str, str] = {}
    for above, below in links:
        if below not in youngest or graph.nodes[above].date > graph.nodes[youngest[below]].date:
            youngest[below] = above
    return {(above, below): links[above, below] for below, above in youngest.items()}


def _grow(tree: Tree, graph: Graph, name: str, links: Links) -> None:
    for (above, below), evidence in links.items():
        if above == name:
            _grow(tree.add(_node(graph, below) + evidence), graph, below, links)


def _around(graph: Graph, name: str, sources: bool) -> Tree:
    """What one node took and what was taken from it."""
    tree = Tree(Text(_node(graph, name), "bold"))
    if sources:
        tree.add(graph.nodes[name].source)
    for title, kind in (("comes from", "from"), ("develops", "develops"), ("uses", "uses")):
        links = _links(graph, kind, sources)
        if any(below == name for _, below in links):
            _rise(tree.add(Text(title, "bold")), graph, name, links, set())
    below = {**_nearest(graph, "develops", sources), **_nearest(graph, "from", sources)}
    users = {pair: said for pair, said in _links(graph, "uses", sources).items() if pair[0] == name}
    for title, links in (("gave rise to", below), ("used by", users)):
        if any(above == name for above, _ in links):
            _grow(tree.add(Text(title, "bold")), graph, name, links)
    return tree


def _rise(tree: Tree, graph: Graph, name: str, links: Links, told: set[str]) -> None:
    """What `name` came from, and what that came from, once each."""
    for (above, below), evidence in links.items():
        if below == name:
            license = graph.nodes[above].license
            under = f", then under {license}" if license else ""
            branch = tree.add(_node(graph, above) + evidence + under)
            if above not in told:
                told.add(above)
                _rise(branch, graph, above, links, told)


def _node(graph: Graph, name: str) -> str:
    node = graph.nodes[name]
    if node.kind == "model":
        return f"{name} ({node.lab}, {node.date:%Y-%m})"
    users = {edge.descendant for edge in graph.edges if edge.kind == "uses" and edge.ancestor == name}
    return f"{name}: {node.title} ({node.lab}, {node.date:%Y-%m}), used by {len(users)}"


def _detail(edge: Edge) -> str:
    if edge.config:
        return ": " + ", ".join(f"{field} = {value}" for field, value in edge.config.items())
    if edge.code:
        return f": {edge.code.family} imports {edge.code.takes or 'parts'} of {edge.code.imports}"
    return ""


def _print_risk(graph: Graph, catalogue: Catalogue, as_json: bool) -> None:
    from lichen.atlas.lineage.risk import measure
    from lichen.atlas.market import words

    found = measure(graph, catalogue, graph.as_of)
    if as_json:
        obligations = {
            name: [each.model_dump() for each in asked] for name, asked in found.obligations.items()
        }
        print_json(asdict(found) | {"obligations": obligations})
        return
    say(f"Risk as of {found.as_of}, over {found.models} open models of the graph", style="bold")
    say("\nWhat models rest on (with evidence in code; by what their makers say alone)", style="bold")
    print_table(_roots(found))
    say("\nHow alike the techniques of a year's models are (mean Jaccard similarity)", style="bold")
    print_table(_similarity(found))
    say("\nWhere techniques come from", style="bold")
    say_whole(*(line for each in found.exchange for line in _exchange(each)))
    say("\nWhat the licenses ask of you", style="bold")
    for name, asked in found.obligations.items():
        say_whole(f"{name}: {'; '.join(map(words.obligation, asked))}")
    reuse = ", ".join(f"{name} {each.direct} ({each.all})" for name, each in graph.reuse.families.items())
    say(f"\nFamilies of {graph.reuse.library} whose code builds on a root, directly (in all)", style="bold")
    say(reuse)
    say("docs/lineage.md defines each number. They count what this graph has, no more.")


def _roots(risk: Risk) -> Table:
    beside = "models of other labs that would be without it (techniques they have from its lab)"
    table = plain_table("", "lab", "rest on it", "stated", beside)
    for root in risk.roots:
        own = "" if root.own_techniques is None else f" ({root.own_techniques:.0%})"
        below = f"{', '.join(root.dependents)}{own}" if root.dependents else "none"
        table.add_row(root.name, root.lab, f"{root.share:.0%}", f"{root.stated:.0%}", below)
    return table


def _similarity(risk: Risk) -> Table:
    table = plain_table("year to", "models", "all", "one lab", "two labs", "one country", "two countries")
    for each in risk.similarity:
        labs, countries = (each.within_labs, each.across_labs), (each.within_countries, each.across_countries)
        cells = map(_number, (each.overall, *labs, *countries))
        table.add_row(str(each.day), str(each.models), *cells)
    last = risk.similarity[-1]
    for title, groups in (("by lab", last.by_lab), ("by country", last.by_country)):
        for group, value in groups.items():
            table.add_row("", title, _number(value), group)
    return table


def _exchange(each: Exchange) -> Iterator[str]:
    origins = ", ".join(f"{lab} {count}" for lab, count in each.origins.items())
    mutual = ", ".join(" and ".join(pair) for pair in each.mutual) or "none"
    outside = "-" if each.outside is None else f"{each.outside:.0%}"
    by_lab, by_country = _number(each.herfindahl), _number(each.herfindahl_countries)
    yield f"{each.title}: models {each.models}, labs {each.labs}, uses of techniques {each.uses}"
    yield f"  first published by: {origins or 'nobody here'}"
    yield f"  concentration (Herfindahl): {by_lab} by lab, {by_country} by country"
    yield (
        f"  from outside the lab: {outside}; uses that other labs make of its own: {each.given}; "
        f"labs that took from each other: {mutual}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
