// Before anything is drawn, so that no page flashes.
document.documentElement.dataset.theme = localStorage.getItem("mien-theme")
  || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
