// The cluster: how far behind, how fast, what waits, who leads, what is wrong.
import { follow, lines } from "./connect.js";
import { fill, h } from "./dom.js";

export function clusterView({ main, status, signal }) {
  const content = h("div", { class: "cards" }, h("p", { class: "quiet" }, "Loading…"));
  fill(main, h("div", { class: "bar" }, h("h1", {}, "Cluster")), content);
  follow({
    signal,
    open: (stop) => lines("/page/cluster", stop),
    report: (how, error) => {
      status(how, error);
      if (how === "failed") fill(content, h("p", { class: "problem" }, error.message));
    },
    each: (state) => state !== null && fill(content, h("pre", {}, JSON.stringify(state, null, 2))),
  });
}
