// Runs before the first paint, so that a chosen theme does not flash the other one.
"use strict";
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("tidemill-theme");
  } catch {
    // Storage may be forbidden; the system's preference then rules.
  }
  if (chosen === "light" || chosen === "dark") {
    document.documentElement.dataset.theme = chosen;
  }
})();
