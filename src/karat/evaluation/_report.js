(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const config = () => {
    const ink = colour("--soft"), line = colour("--line"), font = getComputedStyle(document.body).fontFamily;
    return {
      background: "transparent", font, view: { stroke: null },
      axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line,
              labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", titlePadding: 8, labelLimit: 220, labelOverlap: true, labelSeparation: 8 },
      legend: { labelColor: ink, labelFontSize: 12, symbolOpacity: 1 },
    };
  };
  const specs = [...document.querySelectorAll(".chart")].map((slot) =>
    [slot, JSON.parse(slot.querySelector("script").textContent)]);
  const draw = () => specs.forEach(([slot, spec]) => vegaEmbed(
    slot,
    { ...spec, width: "container", height: +slot.dataset.height - 40, autosize: { type: "fit-x", contains: "padding" } },
    { mode: "vega-lite", actions: false, renderer: "svg", config: config(), tooltip: false },
  ));
  draw();
  dark.addEventListener("change", draw);
})();
