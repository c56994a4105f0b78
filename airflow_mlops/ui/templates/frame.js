// Inside Airflow the page follows Airflow's own theme. The frame that it stands in may not open windows, which Airflow's
// page around it may, so that one is asked to. Outside Airflow the links and the browser's theme are left as they are.
"use strict";
let around = null;
try {
  around = window.parent === window ? null : window.parent.document;
} catch {
  // Another origin's page: nothing to follow there.
}
if (around) {
  const outer = around.documentElement;
  const follow = () => {
    document.documentElement.dataset.theme = outer.classList.contains("dark") ? "dark" : "light";
  };
  follow();
  new MutationObserver(follow).observe(outer, { attributeFilter: ["class"] });
  const open = (event) => {
    const link = event.target.closest("a[target]");
    if (!link || event.button > 1) return;
    const apart = link.target === "_blank" || event.button === 1 || event.ctrlKey || event.metaKey || event.shiftKey;
    const copy = around.createElement("a");
    copy.href = link.href;
    copy.rel = "noopener";
    copy.target = apart ? "_blank" : "_self";
    event.preventDefault();
    copy.click();
  };
  document.addEventListener("click", open);
  document.addEventListener("auxclick", open);
}
