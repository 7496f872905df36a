"""The lineage graph for other programs: JSON, GraphML, Mermaid."""

import json
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from lichen.atlas.lineage.graph import Graph, Node

NODE_FIELDS = ("kind", "title", "lab", "country", "date", "license", "open_weights", "source")
EDGE_FIELDS = ("kind", "evidence", "source", "date", "license")
ARROWS = {"config": "==>", "code": "-.->", "report": "-->", "claim": "-.->"}


def to_json(graph: Graph) -> dict[str, Any]:
    """`as_of`, `nodes` and `edges`, with dates as text and unknown as null."""
    return {
        "as_of": str(graph.as_of),
        "nodes": [asdict(node) | {"date": str(node.date)} for node in graph.nodes.values()],
        "edges": [
            asdict(edge) | {"date": str(edge.date), "code": edge.code and edge.code.model_dump()}
            for edge in graph.edges
        ],
    }


def to_graphml(graph: Graph) -> str:
    """GraphML (http://graphml.graphdrawing.org) with every field as text; an unknown one is left out."""
    root = ElementTree.Element("graphml", xmlns="http://graphml.graphdrawing.org/xmlns")
    for target, fields in (("node", NODE_FIELDS), ("edge", EDGE_FIELDS)):
        for field in fields:
            about = {"id": f"{target}_{field}", "for": target, "attr.name": field, "attr.type": "string"}
            ElementTree.SubElement(root, "key", about)
    body = ElementTree.SubElement(root, "graph", id="lineage", edgedefault="directed")
    nodes = (({"id": node.name}, node) for node in graph.nodes.values())
    edges = (({"source": edge.ancestor, "target": edge.descendant}, edge) for edge in graph.edges)
    for target, fields, items in (("node", NODE_FIELDS, nodes), ("edge", EDGE_FIELDS, edges)):
        for attributes, item in items:
            element = ElementTree.SubElement(body, target, attributes)
            for field in fields:
                if (value := getattr(item, field)) is not None:
                    ElementTree.SubElement(element, "data", key=f"{target}_{field}").text = str(value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def to_mermaid(graph: Graph) -> str:
    """A Mermaid flowchart: thick arrows for configs, thin for reports, dotted for code and claims."""
    names = {name: f"n{index}" for index, name in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    lines += [f"  {names[node.name]}{_shape(node)}" for node in graph.nodes.values()]
    lines += [
        f"  {names[edge.ancestor]} {ARROWS[edge.evidence]}|{edge.evidence}| {names[edge.descendant]}"
        for edge in graph.edges
    ]
    return "\n".join(lines)


def _shape(node: Node) -> str:
    label = node.title.replace('"', "#quot;")
    text = json.dumps(f"{label}<br>{node.lab}, {node.date:%Y-%m}", ensure_ascii=False)
    return f"([{text}])" if node.kind == "technique" else f"[{text}]"
