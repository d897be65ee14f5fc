"""Reports with planted identifiers for `deidentify.py`: made up, seeded, and not made from what the remover knows.

Names come from Faker's Chinese names, from pairs of characters of the Thousand Character Classic (given names that no
list holds), and from short lists below for compound surnames and for names of the minorities. Phrases come in two
halves: SEEN was at hand while the remover's rules were written and tuned, UNSEEN was written when the tuning was over;
results are told apart. Later rules were tuned on SEEN and on `tests/data/deidentify/name_phrases.txt`; by then UNSEEN
stood in this file, but none of the names missed in it was looked at. One author wrote rules and phrases, so real
reports may be further from the rules than UNSEEN.
"""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass, field

from faker import Faker

FUNCTION_WORDS = "不之而若则及当往来于从"
CLASSIC = (
    "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏云腾致雨露结为霜金生丽水玉出昆冈剑号巨阙珠称夜光果珍李柰菜重芥姜海咸河淡鳞潜羽翔"
    "坐朝问道垂拱平章爱育黎首臣伏戎羌遐迩壹体率宾归王鸣凤在竹白驹食场化被草木赖及万方孝当竭力忠则尽命临深履薄夙兴温凊似兰斯馨如松之盛"
    "川流不息渊澄取映容止若思言辞安定笃初诚美慎终宜令荣业所基籍甚无竟学优登仕摄职从政存以甘棠去而益咏"
)
CHARACTERS = [character for character in CLASSIC if character not in FUNCTION_WORDS]
"""Nobody is called 不 or 而."""
COMPOUND = (
    "欧阳",
    "上官",
    "司马",
    "诸葛",
    "皇甫",
    "夏侯",
    "东方",
    "令狐",
    "尉迟",
    "慕容",
    "司徒",
    "公孙",
    "长孙",
    "宇文",
)
MINORITY = (
    "阿依古丽·买买提",
    "努尔兰·叶尔肯",
    "古丽娜尔·吐尔逊",
    "巴特尔·苏和",
    "艾合买提·阿不力孜",
    "帕丽旦·木沙",
    "尼玛·次仁",
    "其其格·额尔敦",
)

CLINICAL = [
    "肝脏 大小 形态 正常 ，包膜 光整 ，实质 回声 均匀 ，血管 网络 清晰",
    "甲状腺 右叶 中部 见 低回声 结节 ，大小约 {a}mm×{b}mm ，边界 欠清 ，纵横比 大于1 ，TI-RADS 4a 类",
    "左乳 外上象限 见 混合回声 团块 ，范围 约 {c}cm×{d}cm ，后方回声 增强 ，BI-RADS 4b",
    "双肾 大小 正常 ，皮髓质 分界 清 ，集合系统 未见 分离 ，余 未见 明显 异常",
    "子宫 前位 ，宫腔 内 见 孕囊 ，孕 12周+3天 ，胎心 搏动 规律 ，羊水 最大 深度 {d}cm",
    "胆囊 壁 毛糙 ，腔内 见 强回声 光团 ，后伴 声影 ，随 体位 改变 移动",
    "右侧 卵巢 内 见 黄体囊肿 ，壁薄 ，透声 可 ，左侧 附件区 未见 包块",
    "颈动脉 内中膜 增厚 ，右侧 窦部 见 软斑 ，管腔 通畅 ，血流 充盈 可 ，RI 0.{b}",
    "马蹄肾 ，双侧 输尿管 未见 扩张 ，膀胱 充盈 可 ，壁 尚光滑",
    "左室 收缩 功能 正常 ，LVEF {a}% ，二尖瓣 少量 反流 ，房室 连接 关系 正常",
    "方叶 肿大 ，门静脉 内径 1.{b}cm ，脾门 处 迂曲 管状 结构 ，符合 肝硬化 声像图",
    "白色 分泌物 ，C5-6 椎间盘 未见 异常 ，乳头 旁 1/3 处 压痛 ，探头 频率 7.5MHz",
    "前列腺 移行区 增大 ，内外腺 分界 清楚 ，残余尿量 约 {a}ml ，精囊 对称",
    "高血压 病史 5年 ，糖尿病 病史 10年 ，查体 墨菲征 阳性 ，CA125 {a}U/ml",
    "胰腺 形态 规则 ，主胰管 不扩张 ，周围 未见 肿大 淋巴结",
    "于 左侧 腹股沟区 探及 无回声区 ，与 腹腔 相通 ，内 见 肠管 回声 ，考虑 斜疝",
]
"""Words of a clause are told apart by blanks, which the report does not have; {a} {b} are whole, {c} {d} decimals."""

SEEN = {
    "name": [
        "患者{name}，男，{age}岁。",
        "患者{name}，女，因腹痛来诊。",
        "姓名：{name} 性别：女。",
        "报告医师：{name}。",
        "{name}医生建议复查。",
        "{name}主任会诊意见同前。",
        "{title_name}医生建议定期随访。",
        "请{title_name}主任会诊。",
        "由{name}医师操作。",
        "审核医师：{name}。",
        "{name}女士主诉右上腹不适。",
        "据其丈夫{name}代诉，停经后偶有腹痛。",
        "本次检查由{name}完成，{name2}复核。",
        "{name}（家属）签字同意穿刺。",
        "门诊{name}大夫开单。",
        "已电话告知{name}本人。",
        "{title_name}教授阅片后同意上述诊断。",
        "病人{name}既往有胆囊结石病史。",
        "检查者：{name}，记录者：{name2}。",
        "{name}、{name2}医师共同阅片。",
        "经管医生{name}，联系家属{name2}。",
        "我科{title_name}主任及{name}医师会诊后建议手术。",
        "陪同人{name}代为陈述病史。",
        "产妇{name}孕期平稳。",
        "与患者{name}沟通后其表示理解。",
        "本报告经{name}审阅。",
        "申请医生：{name}",
        "签发：{name}。",
        "{name}同志，体检者。",
        "患儿{name}，母亲{name2}代述病史。",
        "超声引导下穿刺由{title_name}大夫施行。",
        "送检者 {name}。",
        "（{name}/{name2}）",
        "转交{title_name}护士长。",
        "受检人{name}自行来院。",
        "{name}母亲诉其夜间哭闹。",
        "手术者：{name}，助手：{name2}。",
        "{title_name}副教授指导。",
        "{name}于我科行甲状腺穿刺。",
        "值班医师{name}。",
        "联系人：{name}（夫妻）。",
        "患者{name}要求提前出具报告。",
        "新生儿{name}之母有妊娠糖尿病。",
        "责任护士{name}已核对身份。",
        "感谢{title_name}专家会诊。",
        "报告人：{name} 复核人：{name2}",
        "遵{title_name}主任医嘱。",
        "{name}先生体检。",
        "此图像由{name}采集。",
        "随访由{name}负责。",
        "{name}护士陪同进入检查室。",
        "与{title_name}医生电话沟通。",
        "患者姓名{name}，住院患者。",
        "孕妇{name}，{age}岁。",
        "其女{name}陪诊。",
        "会诊专家：{name}。",
        "{name}、{name2}。",
        "主刀{title_name}教授。",
        "{name}患者诉颈部不适。",
        "家长{name}拒绝镇静。",
        "扫查医师为{name}。",
        "应{name}要求补充描述。",
        "{name}，{age}岁，初诊。",
        "麻醉由{name}医生实施。",
        "患者{name}自觉乳房胀痛。",
        "{title_name}护士测量血压。",
        "{name}老师带教。",
        "受试者{name}签署知情同意。",
        "上级医师：{name}",
        "病史由其兄{name}提供。",
        "会诊记录（{title_name}教授）。",
        "患者{name}平素月经规则。",
    ],
    "id_number": [
        "身份证号：{id_number}。",
        "证件号码{id_number}。",
        "（{id_number}）。",
        "持{id_number}办理登记。",
        "身份证{id_number}，",
        "公民身份号码：{id_number}。",
        "证号{id_number}。",
        "证件：{id_number}。",
        "居民身份证{id_number}已核对。",
        "核对证件{id_number}无误。",
        "ID：{id_number}。",
        "证件信息{id_number}，",
        "登记证件（{id_number}）。",
    ],
    "phone": [
        "联系电话：{phone}。",
        "手机{phone}。",
        "有事请拨{phone}。",
        "家属电话{phone}。",
        "可致电{phone}询问结果。",
        "微信同号{phone}。",
        "Tel:{phone}。",
        "回访号码{phone}。",
        "（{phone}）",
        "手机号：{phone}，",
        "电话回访（{phone}）。",
        "联系方式 {phone}。",
        "座机{phone}。",
        "紧急电话：{phone}。",
        "{phone}（丈夫）。",
    ],
    "number": [
        "住院号：{number}。",
        "门诊号：{number}。",
        "检查号{number}。",
        "病案号{number}的既往报告已调阅。",
        "登记号 {number}。",
        "条码：{number}。",
        "ID号：{number}。",
        "影像号为{number}。",
        "住院号{number}，",
        "申请单{number}。",
        "就诊卡号{number}。",
        "检查单号：{number}。",
        "住院病历号:{number}，",
        "既往检查编号{number}。",
        "住院号为{number}。",
        "病理号：{number}。",
        "本院病案号：{number}。",
        "超声号 {number}。",
        "卡号：{number}，",
    ],
    "bed": [
        "床号：{bed}。",
        "心内科{bed}床。",
        "三病区{bed}床患者。",
        "由{bed}号床转来。",
        "现住{bed}床。",
        "床位{bed}。",
        "{bed}床家属陪同。",
        "本次自{bed}床推来。",
        "病床：{bed}。",
        "转入{bed}床。",
        "床号{bed}，",
        "{bed}床急诊床旁超声。",
        "病区床位：{bed}。",
    ],
    "address": [
        "家住{address}。",
        "住址：{address}。",
        "患者系{address}居民。",
        "现居住于{address}。",
        "地址:{address}，",
        "{address}人。",
        "长期居住在{address}。",
        "户籍{address}。",
        "住{address}。",
        "现住址为{address}，",
        "送至{address}。",
        "来自{address}。",
        "患者住在{address}。",
        "寄往{address}，",
        "患者自述住{address}。",
        "常住地址：{address}。",
    ],
    "email": [
        "邮箱{email}。",
        "报告请发{email}。",
        "电子版发至{email}，",
        "E-mail:{email}。",
        "Email {email}。",
        "联系邮箱：{email}。",
        "（{email}）",
    ],
    "date": [
        "{date}行超声检查。",
        "与{date}片比较无明显变化。",
        "末次月经：{date}。",
        "术后（{date}手术）改变。",
        "{date}外院超声提示结节。",
        "首诊日期{date}。",
        "自{date}起服药。",
        "预产期{date}。",
        "{date}复查。",
        "（{date}）",
        "上次检查时间为{date}，",
        "于{date}入院。",
        "{date}产检。",
        "{date}至今。",
        "检查日期：{date}。",
        "{date}曾行穿刺。",
        "对照{date}旧片。",
        "确诊于{date}。",
        "{date}因停经就诊。",
        "复查（{date}）。",
        "建档日期{date}，",
    ],
}
UNSEEN = {
    "name": [
        "采图{name}。",
        "交班给{name}。",
        "{name}今日来诊，诉腰痛。",
        "其弟{name}为肝炎患者。",
        "{name}医师口头报告危急值。",
        "患者{name}外伤后2小时。",
        "接诊护士{name}。",
        "{title_name}主任查房后要求复查。",
        "姓名:{name}，年龄{age}岁",
        "图像已交{name}保存。",
        "向{title_name}医生交代病情。",
        "{name}与{name2}系夫妻。",
    ],
    "id_number": [
        "证件{id_number}登记在册。",
        "（身份证 {id_number}）",
    ],
    "phone": [
        "电话随访{phone}，",
        "联系人手机{phone}。",
    ],
    "number": [
        "门诊病历号：{number}。",
        "检查编号:{number}，",
        "影像号{number}。",
    ],
    "bed": [
        "病人住{bed}床，",
        "床位号：{bed}。",
    ],
    "address": [
        "现居{address}。",
        "邮寄地址：{address}。",
    ],
    "email": [
        "结果发送至{email}。",
    ],
    "date": [
        "{date}起出现腹痛。",
        "上次月经{date}。",
        "{date}胃镜示溃疡。",
    ],
}
"""Kind -> carriers; what is not a placeholder must survive."""

STYLES = (
    "{y}-{m:02}-{d:02}",
    "{y}年{m}月{d}日",
    "{y}/{m}/{d}",
    "{y}{m:02}{d:02}",
    "{m}月{d}日",
    "{s:02}.{m}.{d}",
    "{y}.{m:02}.{d:02}",
    "{y}年{m:02}月{d:02}日",
)


@dataclass
class Case:
    """One report.

    Args:
        text: the report.
        patient_id, patient_name: of its header.
        planted: (kind, phrase half, string that must be gone, strings that may stand for a partial leak).
        dates: (style, date) planted.
        words: what must stay, clinical words and the carriers' own.
    """

    patient_id: str
    patient_name: str
    text: str = ""
    planted: list[tuple[str, str, str]] = field(default_factory=list)
    dates: list[tuple[str, datetime.date]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


class Maker:
    """Makes cases; equal seeds make equal cases."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.faker = Faker("zh_CN")
        self.faker.seed_instance(seed)

    def name(self) -> str:
        """Two to four characters, or with a dot."""
        kind = self.random.random()
        if kind < 0.55:
            return str(self.faker.name())
        if kind < 0.85:
            return self.faker.last_name() + "".join(self.random.choices(CHARACTERS, k=self.random.choice((1, 2, 2))))
        if kind < 0.92:
            return self.random.choice(COMPOUND) + self.faker.first_name()
        if kind < 0.95:
            return self.faker.last_name() + self.faker.last_name() + "".join(self.random.choices(CHARACTERS, k=2))
        return self.random.choice(MINORITY)

    def date(self) -> tuple[str, datetime.date, str]:
        """Style, date, text."""
        style = self.random.choice(STYLES)
        date = datetime.date(2015, 1, 1) + datetime.timedelta(days=self.random.randrange(3650))
        return style, date, spell(style, date)

    def value(self, kind: str) -> str:
        """An identifier of a kind."""
        pick = self.random.choice
        digits = "".join(self.random.choices("0123456789", k=12))
        if kind == "id_number":
            return str(self.faker.ssn(min_age=1, max_age=100))
        if kind == "phone":
            mobile = "1" + pick("356789") + digits[:9]
            spaced = f"{mobile[:3]}{pick('- ')}{mobile[3:7]}"
            return pick(
                (
                    mobile,
                    f"{spaced}{spaced[3]}{mobile[7:]}",
                    f"0{pick(('571', '10', '755'))}-8{digits[:7]}",
                    f"+86 {mobile}",
                )
            )
        if kind == "number":
            return pick((digits[:8], digits[:6], pick("ZMUH") + digits[:8], f"US{digits[:8]}-{digits[8:]}", digits))
        if kind == "bed":
            return pick((digits[:2].lstrip("0") or "7", f"+{digits[0]}", f"B{digits[:2]}"))
        if kind == "address":
            return self._address()
        return str(self.faker.ascii_free_email())

    def _address(self) -> str:
        number = self.random.randint(1, 320)
        street = self.faker.street_name()
        return self.random.choice(
            (
                f"{self.faker.province()}{self.faker.city()}{self.faker.district()}区{street}{number}号",
                f"{self.faker.city_name()}市{self.faker.district()}区{street}{number}号{number % 20}栋{number % 9}室",
                str(self.faker.address()),
            )
        )

    def case(self, number: int) -> Case:
        """The report of a number: clinical clauses with two to five carriers between them."""
        case = Case(f"P{number:07}{self.random.randint(10, 99)}", self.name())
        pieces = [self._clinical(case) for _ in range(self.random.randint(2, 4))]
        pieces += [self._carrier(case) for _ in range(self.random.randint(2, 5))]
        self.random.shuffle(pieces)
        case.text = "".join(pieces)
        return case

    def _clinical(self, case: Case) -> str:
        numbers = {"a": self.random.randint(3, 60), "b": self.random.randint(3, 40)}
        numbers |= {key: round(self.random.uniform(0.5, 6), 1) for key in "cd"}
        words = self.random.choice(CLINICAL).format(**numbers).split()
        case.words += [word.strip("，") for word in words]
        return "".join(words) + "。"

    def _carrier(self, case: Case) -> str:
        half, phrases = self.random.choice((("seen", SEEN), ("unseen", UNSEEN)))
        kind = self.random.choice(("name", "name", "name", *phrases))
        carrier = self.random.choice(phrases[kind])
        values: dict[str, str] = {"age": str(self.random.randint(1, 89))}
        for key in ("name", "name2", "title_name"):
            if "{" + key + "}" in carrier:
                name = self.faker.last_name() if key == "title_name" else self.name()
                values[key] = name
                after = carrier.split("{title_name}")[1][:2] if key == "title_name" else ""
                case.planted.append(("title" if after else "name", half, name + after))
        if kind == "date":
            style, date, values["date"] = self.date()
            case.dates.append((style, date))
            case.planted.append(("date", half, values["date"]))
        elif kind != "name":
            values[kind] = self.value(kind)
            planted = values[kind] + ("床" if kind == "bed" and "}床" in carrier else "")
            case.planted.append((kind, half, f"{carrier.split('{')[0][-2:]}{planted}" if kind == "bed" else planted))
        plain = carrier.replace("{bed}号床", "{bed}").replace("{bed}床", "{bed}")  # 床 belongs to the bed's number
        fragments = [part.split("}")[-1] for part in plain.replace("/", "，").replace(" ", "，").split("{")]
        case.words += [
            word
            for fragment in fragments
            for word in fragment.strip("。").translate(str.maketrans("：:（）()", "，" * 6)).split("，")
            if len(word) > 1
        ]
        return carrier.format(**values)


def spell(style: str, date: datetime.date) -> str:
    """A date in a style."""
    return style.format(y=date.year, m=date.month, d=date.day, s=date.year % 100)
