// What makes the pages live: the tick, relative times, the theme, copying.
// Owns no data: fragments come from the server as HTML.
"use strict";
(() => {
  const TICK_MS = 2000; // the pages' rhythm; the server shares answers between pages
  const live = document.getElementById("live");
  const darkPreference = matchMedia("(prefers-color-scheme: dark)");

  // --- the tick: paused while nobody sees the page ------------------------------------------

  function setLive(state) {
    if (!live || live.dataset.state === state) return;
    live.dataset.state = state;
    const words = { live: "live", paused: "paused", away: "no connection" };
    live.querySelector(".live-word").textContent = words[state];
  }

  function isReading() {
    const selection = document.getSelection();
    return selection !== null && !selection.isCollapsed;
  }

  function tick() {
    if (document.hidden) return;
    // A swap would take away what somebody is marking.
    if (isReading()) return setLive("paused");
    if (live && live.dataset.state === "paused") setLive("live");
    document.body.dispatchEvent(new CustomEvent("tick"));
  }

  setInterval(tick, TICK_MS);
  document.addEventListener("visibilitychange", () => {
    setLive(document.hidden ? "paused" : "live");
    tick();
  });

  const shown = new WeakMap();
  document.addEventListener("htmx:beforeSwap", (event) => {
    const detail = event.detail;
    // Equal content is not swapped, so that focus, open details and scrolled tables stay.
    if (shown.get(detail.target) === detail.serverResponse) detail.shouldSwap = false;
    else if (detail.xhr.status === 200) shown.set(detail.target, detail.serverResponse);
  });
  document.addEventListener("htmx:afterOnLoad", (event) => {
    const status = event.detail.xhr.status;
    if (status === 401) location.reload();
    // An answer may still arrive after the page was hidden or marked.
    if (status >= 500) setLive("away");
    else if (live && live.dataset.state === "away") setLive("live");
  });
  document.addEventListener("htmx:afterSwap", (event) => refreshTimes(event.target));
  for (const name of ["htmx:sendError", "htmx:timeout"]) {
    document.addEventListener(name, () => setLive("away"));
  }
  document.addEventListener("tidemill:away", () => setLive("away"));

  // --- relative times, the absolute one on hover --------------------------------------------

  const STEPS = [[60, 1, "s"], [3600, 60, "min"], [86400, 3600, "h"], [Infinity, 86400, "d"]];

  function relative(seconds) {
    const size = Math.abs(seconds);
    if (size < 1) return "now";
    const [, unit, word] = STEPS.find(([limit]) => size < limit);
    const text = `${Math.floor(size / unit)} ${word}`;
    return seconds < 0 ? `in ${text}` : `${text} ago`;
  }

  function refreshTimes(root) {
    const now = Date.now();
    for (const element of root.querySelectorAll("time[data-relative]")) {
      const text = relative((now - Date.parse(element.dateTime)) / 1000);
      if (element.textContent !== text) element.textContent = text;
    }
  }

  refreshTimes(document);
  setInterval(() => { if (!document.hidden && !isReading()) refreshTimes(document); }, 1000);

  // --- theme ---------------------------------------------------------------------------------

  function isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : darkPreference.matches;
  }

  function announceTheme() {
    document.dispatchEvent(new CustomEvent("tidemill:theme"));
  }

  document.getElementById("theme")?.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("tidemill-theme", theme);
    } catch {
      // Storage may be forbidden; the choice then lasts as long as the page.
    }
    announceTheme();
  });
  darkPreference.addEventListener("change", announceTheme);

  // --- copying -------------------------------------------------------------------------------

  async function copy(button) {
    const label = button.textContent;
    let word = "Copied";
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch {
      word = "Not allowed by the browser";
    }
    button.textContent = word;
    setTimeout(() => { button.textContent = label; }, 1500);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button);
  });
})();
