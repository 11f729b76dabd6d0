// The table is drawn first; parts that need the data further down wait until the whole page is loaded.

setUpTheme();
if (core.trials.length) {
  setUpBoard();
  const rest = () => {
    drawHero();
    setUpTrial();
    drawCompare();
    setUpSpace();
    setUpScaling();
  };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", rest);
  else rest();
}
