// The page: which view a path has, the state of the connection, the theme, and dialogs.
import { clusterView } from "./cluster.js";
import { askWith, config, forgetToken, hasToken, loadConfig, snapshot } from "./connect.js";
import { fill, h, setAttribute, setText } from "./dom.js";
import { when } from "./format.js";
import { runView } from "./run.js";
import { runsView, viewLink } from "./runs.js";

const THEME = "etcd-actions.theme";
const RUN = /^\/v2\/domain\/([^/]+)\/project\/([^/]+)\/runs\/([^/]+)\/?$/;

const main = document.getElementById("main");
const connection = h("span", { class: "connection", role: "status" });
const banner = h("div", { class: "banner", role: "status", hidden: true });
const signOut = h("button", { type: "button", hidden: true, on: { click: leave } }, "Forget the token");
let ending = new AbortController();
let lostTimer = 0;

function header() {
  const theme = h("button", { type: "button", class: "theme", on: { click: changeTheme } });
  showTheme(theme);
  fill(
    document.getElementById("top"),
    viewLink("/", { class: "brand", "aria-label": snapshot === null ? "etcd-actions: all runs" : null }, h("img", { src: document.querySelector("link[rel=icon]").href, alt: "", width: "22", height: "22" }), h("span", {}, "etcd-actions")),
    snapshot === null
      ? h("nav", { "aria-label": "Views" }, h("a", { href: "/", data: { go: "", nav: "runs" } }, "Runs"), h("a", { href: "/?view=cluster", data: { go: "", nav: "cluster" } }, "Cluster"))
      : null,
    h("span", { class: "spring" }),
    connection,
    signOut,
    theme,
  );
  document.getElementById("top").after(banner);
}

/** Show how the stream of the view does; a lost one also with a banner, unless it is back at once. */
function status(state, error) {
  const words = { connecting: "connecting", live: "live", lost: "reconnecting", ended: "complete", failed: "stopped" };
  connection.dataset.state = state;
  setText(connection, snapshot === null ? words[state] : `report of ${when(snapshot.at)}`);
  signOut.hidden = !hasToken();
  clearTimeout(lostTimer);
  if (state === "lost") {
    const why = error?.message && error.message !== "Failed to fetch" ? `: ${error.message}` : "";
    const show = () => {
      setText(banner, `The connection is lost${why}. What you see may be old; it is being opened again.`);
      banner.hidden = false;
    };
    if (banner.hidden) lostTimer = setTimeout(show, 800);
    else show();
  } else if (state !== "connecting") banner.hidden = true;
}

function route() {
  ending.abort();
  ending = new AbortController();
  document.title = "etcd-actions";
  const query = new URLSearchParams(location.search);
  const found = snapshot === null ? location.pathname.match(RUN) : null;
  const options = { main, query, go, replace, status, signal: ending.signal, dialog };
  const isCluster = query.get("view") === "cluster" && found === null && snapshot === null;
  for (const link of document.querySelectorAll("[data-nav]")) {
    setAttribute(link, "aria-current", (link.dataset.nav === "cluster") === isCluster && found === null ? "page" : null);
  }
  main.className = found !== null || snapshot !== null ? "view-run" : isCluster ? "view-cluster" : "view-runs";
  if (snapshot !== null) runView({ ...options, run: snapshot.run });
  else if (found !== null) {
    const [domain, project, name] = found.slice(1).map(decoded);
    runView({ ...options, run: { project, domain, name } });
  } else if (isCluster) clusterView(options);
  else runsView(options);
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function go(path) {
  if (snapshot !== null) return;
  history.pushState(null, "", path);
  route();
}

function replace(path) {
  if (snapshot === null) history.replaceState(null, "", path);
}

// -- theme ---------------------------------------------------------------------------------------

function currentTheme() {
  return document.documentElement.dataset.theme || "system";
}

function changeTheme(event) {
  const next = { system: "light", light: "dark", dark: "system" }[currentTheme()];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem(THEME, next);
  } catch {
    // Storage is blocked: it lasts until the page is left.
  }
  showTheme(event.currentTarget);
}

function showTheme(button) {
  const now = currentTheme();
  fill(button, { system: "◐", light: "☀", dark: "☾" }[now]);
  setAttribute(button, "aria-label", `Theme: ${now}`);
  setAttribute(button, "title", `Theme: ${now}`);
}

// -- dialogs -------------------------------------------------------------------------------------

/**
 * Ask the user: `field` names a text to give, `choices` its possible values, `confirm` the button.
 * Returns the text, "" without a field, or null if it was cancelled. Without `confirm` it only informs.
 */
function dialog({ title, text = "", field = "", value = "", choices = null, confirm = "", secret = false, must = false }) {
  return new Promise((resolve) => {
    const input =
      field === ""
        ? null
        : choices === null
          ? h("input", { type: secret ? "password" : "text", value, autocomplete: "off", spellcheck: "false", autofocus: true, maxlength: "8000" })
          : h("select", { autofocus: true }, choices.map((each) => h("option", { value: each, selected: each === value }, each)));
    const finish = (answer) => {
      element.close();
      element.remove();
      resolve(answer);
    };
    const form = h(
      "form",
      {
        on: {
          submit: (event) => {
            event.preventDefault();
            if (must && input !== null && input.value.trim() === "") return;
            finish(input === null ? "" : input.value);
          },
        },
      },
      h("h2", { id: "dialog-title" }, title),
      text ? h("p", {}, text) : null,
      input === null ? null : h("label", {}, h("span", {}, field), input),
      h(
        "div",
        { class: "dialog-buttons" },
        must ? null : h("button", { type: "button", on: { click: () => finish(null) } }, confirm ? "Cancel" : "Close"),
        confirm ? h("button", { type: "submit", class: /abort/i.test(confirm) ? "danger" : "primary" }, confirm) : null,
      ),
    );
    const element = h("dialog", { "aria-labelledby": "dialog-title" }, form);
    element.addEventListener("cancel", (event) => {
      event.preventDefault();
      if (!must) finish(null);
    });
    document.body.append(element);
    element.showModal();
  });
}

askWith(async (why) => {
  for (;;) {
    const token = await dialog({
      title: "This service needs a token",
      text: why ? `${why[0].toUpperCase()}${why.slice(1)}. Give another one.` : "It stays in this tab, until that is closed.",
      field: "Token",
      confirm: "Use the token",
      secret: true,
      must: true,
    });
    const given = token.trim().replace(/^Bearer\s+/i, "");
    if (/^[\x21-\x7e]+$/.test(given)) return given;
    why = "A token has letters, digits and signs only";
  }
});

function leave() {
  forgetToken();
  location.assign("/");
}

// -- start ---------------------------------------------------------------------------------------

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-go]");
  if (link === null || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(link.getAttribute("href"));
});
window.addEventListener("popstate", route);
// A page that the browser keeps to come back to would keep its connections, of which there are six.
window.addEventListener("pagehide", () => ending.abort());
window.addEventListener("pageshow", (event) => event.persisted && route());

header();
for (;;) {
  try {
    await loadConfig();
    break;
  } catch (error) {
    status("lost", error);
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}
signOut.hidden = !config.token || !hasToken();
route();
